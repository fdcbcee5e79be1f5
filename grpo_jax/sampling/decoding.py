"""Decoding of groups: each prompt is encoded once, then G candidates are decoded against it.

Pure functions: `begin`, `decode` and `compact` of a `DecodeState`, and `sample_groups`, the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from grpo_jax.config import SamplingConfig
from grpo_jax.models import (
  DecoderConfig,
  Params,
  PromptCache,
  decode_step,
  empty_completion_cache,
  logits_of,
  prefill,
  unstacked,
)
from grpo_jax.models.kv_cache import CompletionCache
from grpo_jax.models.placement import BATCH_AXES, prompt_parts
from grpo_jax.sampling.drawing import draw
from grpo_jax.types import Prompts, Rollout


class Drawn(NamedTuple):
  """What was drawn, as a `Rollout` says it.

  Attributes:
    tokens: [P, G, T] int32.
    mask: [P, G, T] bool.
    logp: [P, G, T] float32, of the policy.
    sampled_logp: [P, G, T] float32, of what was sampled from.
  """

  tokens: jax.Array
  mask: jax.Array
  logp: jax.Array
  sampled_logp: jax.Array


class DecodeState(NamedTuple):
  """Candidates on their way; all that decoding needs besides the weights.

  Attributes:
    prompt: the prompts' cache, each once.
    own: the candidates' caches.
    keys: [P, G] typed, each candidate's own.
    place: [P, G] int32, where it stood among the P * G of its device at first.
    step: int32 scalar, how many tokens were drawn of each that has not ended.
    token: [P, G] int32, the last of them.
    ended: [P, G] bool.
    drawn: all of them.
  """

  prompt: PromptCache
  own: CompletionCache
  keys: jax.Array
  place: jax.Array
  step: jax.Array
  token: jax.Array
  ended: jax.Array
  drawn: Drawn


def begin(
  config: DecoderConfig, params: Params, prompts: Prompts, key: jax.Array, sampling: SamplingConfig
) -> DecodeState:
  """Encodes each prompt once and draws the first token of its candidates.

  Args:
    config: the decoder.
    params: its parameters.
    prompts: P prompts of S tokens; candidates of one without a real token have ended.
    key: typed key of the step.
    sampling: how to draw; static under jit.
  """
  count, group, length = prompts.tokens.shape[0], sampling.group_size, sampling.max_tokens
  fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
  rows = jax.vmap(jax.random.fold_in, (None, 0))(key, prompts.index)
  cache, hidden = prefill(config, params, prompts.tokens, prompts.mask)
  blank = lambda fill, dtype: jnp.full((count, group, length), fill, dtype)
  state = DecodeState(
    prompt=cache,
    own=empty_completion_cache(config, count, group, max(length - 1, 1)),
    keys=fold(rows, jnp.arange(group)),
    place=jnp.arange(count * group).reshape(count, group) % (count // _parts(count) * group),
    step=jnp.int32(0),
    token=jnp.full((count, group), sampling.pad_id, jnp.int32),
    ended=jnp.broadcast_to(~prompts.mask.any(-1, keepdims=True), (count, group)),
    drawn=Drawn(
      blank(sampling.pad_id, jnp.int32), blank(False, bool), *2 * [blank(0, jnp.float32)]
    ),
  )
  first = logits_of(config, params, hidden)[:, None]  # one row for the whole group
  return _draw_next(state, jnp.broadcast_to(first, (count, group, first.shape[-1])), sampling)


def decode(
  config: DecoderConfig,
  weights: Params,
  state: DecodeState,
  sampling: SamplingConfig,
  until: int | jax.Array,
  worth: float | jax.Array | None = None,
) -> DecodeState:
  """Draws tokens of all candidates at a time, until enough are drawn or every candidate has ended.

  Args:
    config: the decoder.
    weights: what decoding reads, `unstacked`.
    state: from `begin`, or from where it was left.
    sampling: how to draw; static under jit.
    until: decode up to so many tokens of each, int32 scalar, at most T.
    worth: float32 scalar. Stop, too, as soon as the candidates that go on fit into a smaller shape
      that would save so many rows times steps, if all steps that are left were taken. None: never.
  """

  def going(state: DecodeState):
    prompts, group = shape_left(state.ended)
    ends = group == 0
    if worth is not None:
      saved = state.ended.size - (prompts * group).astype(jnp.float32)
      ends |= saved * (until - state.step) >= worth
    return (state.step < until) & ~ends

  def advance(state: DecodeState):
    hidden, own = decode_step(config, weights, state.token, state.prompt, state.own, state.step - 1)
    return _draw_next(state._replace(own=own), logits_of(config, weights, hidden), sampling)

  return lax.while_loop(going, advance, state)


def _draw_next(state: DecodeState, logits: jax.Array, sampling: SamplingConfig) -> DecodeState:
  """Draws one token of each candidate that has not ended, from logits [P, G, V]."""
  step, ended, drawn = state.step, state.ended, state.drawn
  uniform = jax.vmap(jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, step))))
  token, logp, sampled = draw(logits, uniform(state.keys), sampling)
  token = jnp.where(ended, sampling.pad_id, token)
  keep = lambda x: jnp.where(ended, 0.0, x)
  put = lambda array, x: lax.dynamic_update_index_in_dim(array, x, step, axis=2)
  stopped = jnp.any(token[..., None] == jnp.asarray(sampling.stop_ids, jnp.int32), axis=-1)
  return state._replace(
    step=step + 1,
    token=token,
    ended=ended | stopped,
    drawn=Drawn(*map(put, drawn, (token, ~ended, keep(logp), keep(sampled)))),
  )


def shape_left(ended: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The smallest shape, int32 scalars P and G, that the candidates that go on fit into.

  P is halved as often as it may be, and so is G; G is 0 where every candidate has ended. Prompts
  stay on their device, so the one with the most of them decides.

  Args:
    ended: [P, G] bool.
  """
  count, group = ended.shape
  parts = _parts(count)
  live = ~ended.reshape(parts, count // parts, group)
  # One array, so that devices tell each other one thing for each token.
  most = jnp.stack([live.any(-1).sum(-1), live.sum(-1).max(-1)], -1).max(0)

  def fit(n: jax.Array, whole: int) -> jax.Array:
    sizes = jnp.asarray(halves(whole))
    return jnp.where(sizes >= n, sizes, whole).min()

  return parts * fit(most[0], count // parts), jnp.where(most[1] > 0, fit(most[1], group), 0)


def halves(whole: int) -> tuple[int, ...]:
  """A number, half of it and so on, rounded up, down to 1: the sizes that batches are cut to."""
  sizes = [whole]
  while sizes[-1] > 1:
    sizes.append(-(-sizes[-1] // 2))
  return tuple(sizes)


def compact(
  state: DecodeState, settled: Drawn | None, prompts: int, group: int
) -> tuple[DecodeState, Drawn]:
  """Leaves out prompts and candidates that have ended; the others stay in order.

  Cutting G leaves the prompts where they are. Cutting P leaves each on its device, which sends
  nothing to the others.

  Args:
    state: P prompts of G candidates each.
    settled: what was drawn of those at first, [P', G', T]; None if these are still all of them.
    prompts: how many to leave, static; at least as many as go on of any device, times devices.
    group: how many candidates of each, static; at least as many as go on in any group.

  Returns:
    The state of those, and all that has been drawn of the candidates that are left out.
  """
  cut_prompts = prompts < state.ended.shape[0]
  local = prompts // _parts(state.ended.shape[0])

  def on_device(rows: tuple[Any, ...], prompt: Any):
    ended = rows[0]
    order = lambda ended: jnp.argsort(ended, axis=-1, stable=True)
    kept = order(ended.all(-1))[:local] if cut_prompts else jnp.arange(local)
    candidates = order(ended)[kept, :group]
    rows = jax.tree.map(lambda x: x[kept[:, None], candidates], rows)
    return rows, jax.tree.map(lambda x: x[kept], prompt)

  settled = settle(settled, state)
  rows = (state.ended, state.own, state.keys, state.place, state.token, state.drawn)
  rows, prompt = _on_each_device(on_device, rows, state.prompt if cut_prompts else None)
  ended, own, keys, place, token, drawn = rows
  prompt = prompt if cut_prompts else state.prompt
  return DecodeState(prompt, own, keys, place, state.step, token, ended, drawn), settled


def settle(settled: Drawn | None, state: DecodeState) -> Drawn:
  """Puts what was drawn of these candidates where they stood at first."""
  if settled is None:
    return state.drawn

  def on_device(settled: Drawn, drawn: Drawn, place: jax.Array):
    flat = lambda x: x.reshape(-1, x.shape[-1])
    put = lambda x, new: flat(x).at[place.ravel()].set(flat(new)).reshape(x.shape)
    return jax.tree.map(put, settled, drawn)

  return _on_each_device(on_device, settled, state.drawn, state.place)


def _on_each_device(function: Callable[..., Any], *trees: Any) -> Any:
  """Calls a function of arrays [P, ..] on each device's own prompts."""
  if _parts(jax.tree.leaves(trees)[0].shape[0]) == 1:
    return function(*trees)
  own = PartitionSpec(BATCH_AXES)
  mapped = jax.shard_map(function, in_specs=own, out_specs=own, axis_names=set(BATCH_AXES))
  return mapped(*trees)


def _parts(prompts: int) -> int:
  """Into how many parts the mesh splits so many prompts."""
  parts = prompt_parts()
  return parts if prompts % parts == 0 else 1


def sample_groups(
  config: DecoderConfig,
  params: Params,
  prompts: Prompts,
  key: jax.Array,
  sampling: SamplingConfig,
  weights: Params | None = None,
) -> Rollout:
  """Draws G completions of each prompt from the policy, as one pure function.

  The prompts' keys and values are computed and stored once. The loop ends when every candidate has
  ended. Candidate g of prompt p draws its t-th token with `fold_in(key, index[p], g, t)`, so it is
  the same whatever else is in the batch. A `SampleProgram` draws the same and spares the candidates
  that have ended.

  Args:
    config: the decoder.
    params: its parameters.
    prompts: P prompts of S tokens.
    key: typed key of the step.
    sampling: how to draw; static under jit.
    weights: what decoding reads, `unstacked`; of `params` when None.

  Returns:
    A `Rollout` of [P, G, T] with T = `sampling.max_tokens`.
  """
  state = begin(config, params, prompts, key, sampling)
  weights = unstacked(config, params) if weights is None else weights  # once, not for each token
  state = decode(config, weights, state, sampling, sampling.max_tokens)
  return rollout_of(prompts, state.drawn)


def rollout_of(prompts: Prompts, drawn: Drawn) -> Rollout:
  """The `Rollout` of what was drawn; the policy sampled every real token."""
  return Rollout(prompts, drawn.tokens, drawn.mask, drawn.mask, drawn.logp, drawn.sampled_logp)
