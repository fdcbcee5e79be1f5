"""Sampling of groups: each prompt is encoded once, then G candidates are decoded against it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from grpo_jax.config import SamplingConfig
from grpo_jax.models import (
  DecoderConfig,
  LoraConfig,
  Params,
  decode_step,
  empty_completion_cache,
  in_compute_dtype,
  layers_apart,
  logits_of,
  prefill,
  unstacked,
  with_adapters,
)
from grpo_jax.runs import hosts
from grpo_jax.sharding import AnyMesh, decoding_parameters, on_mesh
from grpo_jax.tasks.batches import bucket_length, pad_prompts
from grpo_jax.types import Prompts, Rollout

# Lengths that prompts and completions are padded to: few enough programs, little enough padding.
LENGTH_BUCKETS = (
  *(32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192),
  *(12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072),
)
CDF_BLOCK = 128
PREFILL_TOKENS = 8192  # `generate` encodes at most so many prompt tokens at a time


def sample_groups(
  config: DecoderConfig,
  params: Params,
  prompts: Prompts,
  key: jax.Array,
  sampling: SamplingConfig,
  weights: Params | None = None,
) -> Rollout:
  """Draws G completions of each prompt from the policy.

  The prompts' keys and values are computed and stored once. The loop ends when every candidate has
  ended. Candidate g of prompt p draws its t-th token with `fold_in(key, index[p], g, t)`, so it is
  the same whatever else is in the batch.

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
  count, group, length = prompts.tokens.shape[0], sampling.group_size, sampling.max_tokens
  fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
  rows = jax.vmap(jax.random.fold_in, (None, 0))(key, prompts.index)
  keys = fold(rows, jnp.arange(group))  # [P, G]
  stops = jnp.asarray(sampling.stop_ids, jnp.int32)

  cache, hidden = prefill(config, params, prompts.tokens, prompts.mask)
  first = logits_of(config, params, hidden)[:, None]  # one row for the whole group
  weights = unstacked(config, params) if weights is None else weights  # once, not for each token

  def draw_at(step, logits, ended):
    uniform = jax.vmap(jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, step))))(keys)
    token, logp, sampled = draw(logits, uniform, sampling)
    token = jnp.where(ended, sampling.pad_id, token)
    stopped = jnp.any(token[..., None] == stops, axis=-1)
    keep = lambda x: jnp.where(ended, 0.0, x)
    return token, keep(logp), keep(sampled), ended | stopped

  def record(out, step, token, logp, sampled, ended_before):
    put = lambda array, x: lax.dynamic_update_index_in_dim(array, x, step, axis=2)
    return (
      put(out[0], token),
      put(out[1], ~ended_before),
      put(out[2], logp),
      put(out[3], sampled),
    )

  shape = (count, group, length)
  out = (
    jnp.full(shape, sampling.pad_id, jnp.int32),
    jnp.zeros(shape, bool),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros(shape, jnp.float32),
  )
  alive = jnp.zeros(shape[:2], bool)
  first = jnp.broadcast_to(first, (*shape[:2], first.shape[-1]))
  token, logp, sampled, ended = draw_at(0, first, alive)
  out = record(out, 0, token, logp, sampled, alive)
  own = empty_completion_cache(config, count, group, max(length - 1, 1))

  def going(carry):
    step, _, ended, _, _ = carry
    return (step < length - 1) & ~jnp.all(ended)

  def advance(carry):
    step, token, ended, own, out = carry
    hidden, own = decode_step(config, weights, token, cache, own, step)
    logits = logits_of(config, weights, hidden)
    token, logp, sampled, now = draw_at(step + 1, logits, ended)
    return step + 1, token, now, own, record(out, step + 1, token, logp, sampled, ended)

  *_, out = lax.while_loop(going, advance, (jnp.int32(0), token, ended, own, out))
  tokens, sampled_mask, logp, sampled_logp = out
  return Rollout(prompts, tokens, sampled_mask, sampled_mask, logp, sampled_logp)


def draw(
  logits: jax.Array, uniform: jax.Array, cfg: SamplingConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws one token a row by inverting the cumulative distribution at one uniform number.

  One number a row replaces the V Gumbel variates of the usual trick.

  Args:
    logits: [.., V] float32.
    uniform: [..] float32 in [0, 1).
    cfg: temperature and filters.

  Returns:
    The tokens [..] int32, their log-probs under the policy at this temperature and under the
    distribution that was sampled from (filtered, too), [..] float32 in nats.
  """
  logits = logits / (cfg.temperature or 1.0)
  unfiltered = jax.nn.log_softmax(logits, axis=-1)
  pick = lambda table, token: jnp.take_along_axis(table, token[..., None], axis=-1)[..., 0]
  if cfg.temperature == 0:
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token, pick(unfiltered, token), jnp.zeros_like(uniform)
  sampled = jax.nn.log_softmax(filtered_logits(logits, cfg), axis=-1)
  token = invert_cdf(jnp.exp(sampled), uniform)
  return token, pick(unfiltered, token), pick(sampled, token)


def filtered_logits(logits: jax.Array, cfg: SamplingConfig) -> jax.Array:
  """Sets the logits [.., V] of tokens that top-k, top-p or min-p exclude to minus infinity.

  Filters apply in that order, each to what the one before it left (as transformers does).
  """
  if 0 < cfg.top_k < logits.shape[-1]:
    logits = _cut(logits, lax.top_k(logits, cfg.top_k)[0], True)
  if cfg.top_p < 1:
    ordered = jnp.sort(logits, axis=-1)[..., ::-1]
    chance = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(chance, axis=-1) - chance  # a token stays while those above it fall short
    logits = _cut(logits, ordered, before < cfg.top_p)
  if cfg.min_p > 0:
    floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(cfg.min_p)
    logits = jnp.where(logits < floor, -jnp.inf, logits)
  return logits


def _cut(logits: jax.Array, likeliest: jax.Array, stays: jax.Array | bool) -> jax.Array:
  """Leaves as many of the logits [.., V] as of the `likeliest` [.., K] stay, and those.

  Of tokens with the weakest logit that stays, the lowest ids are left: logits that were computed in
  bfloat16 are often equal, and all of them would be more than were asked for.
  """
  weakest = jnp.min(jnp.where(stays, likeliest, jnp.inf), axis=-1, keepdims=True)
  room = jnp.sum(stays & (likeliest == weakest), axis=-1, keepdims=True)
  tied = logits == weakest
  beyond = tied & (jnp.cumsum(tied, axis=-1) > room)
  return jnp.where((logits < weakest) | beyond, -jnp.inf, logits)


def invert_cdf(chance: jax.Array, uniform: jax.Array) -> jax.Array:
  """The token at which the cumulative probability first exceeds `uniform`.

  Two levels, blocks and then tokens of one block, so that no running sum over V is needed.

  Args:
    chance: [.., V] float32, not negative, of sum about 1.
    uniform: [..] float32 in [0, 1).

  Returns:
    [..] int32, always a token with a positive chance.
  """
  vocab = chance.shape[-1]
  pad = -vocab % CDF_BLOCK
  chance = jnp.pad(chance, [(0, 0)] * (chance.ndim - 1) + [(0, pad)])
  blocks = chance.reshape(*chance.shape[:-1], -1, CDF_BLOCK)
  mass = blocks.sum(-1)
  edge = jnp.cumsum(mass, axis=-1)
  target = (uniform * edge[..., -1])[..., None]
  block = _first_above(edge, mass, target)
  below = jnp.take_along_axis(edge - mass, block[..., None], axis=-1)
  inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
  token = _first_above(jnp.cumsum(inside, axis=-1), inside, target - below)
  return (block * CDF_BLOCK + token).astype(jnp.int32)


def _first_above(edges: jax.Array, mass: jax.Array, target: jax.Array) -> jax.Array:
  """First index with mass whose running sum exceeds the target, or else the last one with mass.

  A parallel running sum can rise by rounding where there is no mass, so the edges alone do not say.
  """
  above = (edges > target) & (mass > 0)
  last = mass.shape[-1] - 1 - jnp.argmax((mass > 0)[..., ::-1], axis=-1)
  return jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), last)


@dataclasses.dataclass(frozen=True)
class SampleProgram:
  """`sample_groups` under `jax.jit`: (trained, base, prompts, key) -> `Rollout`.

  On one device the layers that decoding reads are taken apart before the program, which then
  compiles no slice of each weight of each layer. On a mesh it takes them apart itself, because it
  gathers them, too, and must not hold them twice.

  Attributes:
    config: the decoder.
    mesh: where it runs.
    lora: of the adapters in `trained`; None where the whole model is trained.
    jitted: (trained, base, prompts, key, layers) -> `Rollout`; takes None apart itself.
  """

  config: DecoderConfig
  mesh: AnyMesh
  lora: LoraConfig | None
  jitted: Any

  def __call__(
    self, trained: Params, base: Params | None, prompts: Prompts, key: jax.Array
  ) -> Rollout:
    return self.jitted(trained, base, prompts, key, self._layers(trained, base))

  def compile(
    self, trained: Params, base: Params | None, prompts: Prompts, key: jax.Array
  ) -> Callable[[Params, Params | None, Prompts, jax.Array], Rollout]:
    """The program compiled for arguments like these, without a run of it."""
    layers = self._layers(trained, base)
    compiled = self.jitted.lower(trained, base, prompts, key, layers).compile()
    return dataclasses.replace(self, jitted=compiled)

  def trace(self, *given: Any) -> Any:
    """All of the work as one program, traced with what a call takes or its shapes."""
    return self.jitted.trace(*given, None)

  def _layers(self, trained: Params, base: Params | None) -> tuple[Params, ...] | None:
    if self.mesh.size > 1:
      return None
    return layers_apart(self.config, with_adapters(trained, base, self.lora))


def sample_program(
  config: DecoderConfig,
  mesh: AnyMesh,
  sampling: SamplingConfig,
  lora: LoraConfig | None = None,
  *,
  gather_weights: bool = True,
) -> SampleProgram:
  """The `SampleProgram` of these settings; `gather_weights` as in `GRPOConfig`."""

  def sample(trained, base, prompts, key, layers):
    with on_mesh(mesh):
      params = with_adapters(trained, base, lora)
      if layers is None:
        weights = decoding_parameters(config, params, gather=gather_weights)
      else:
        weights = in_compute_dtype(config, params | {"layers": layers})
      return sample_groups(config, params, prompts, key, sampling, weights)

  return SampleProgram(config, mesh, lora, jax.jit(sample))


def pad_to_bucket(
  prompts: Sequence[Sequence[int]], pad_id: int, buckets: Sequence[int] = LENGTH_BUCKETS
) -> Prompts:
  """A step's prompts as arrays on the host, padded to the bucket of the longest."""
  length = bucket_length(max(map(len, prompts)), buckets)
  tokens, mask = pad_prompts(prompts, length, pad_id)
  return Prompts(tokens, mask, np.arange(len(prompts), dtype=np.int32))


def cut_to_bucket(rollout: Rollout, longest: int) -> Rollout:
  """Cuts the padding behind the longest completion, of so many tokens, down to a bucket."""
  length = min(bucket_length(longest, LENGTH_BUCKETS), rollout.tokens.shape[2])
  names = ("tokens", "completion_mask", "loss_mask", "logp", "sampled_logp")
  return dataclasses.replace(rollout, **{n: getattr(rollout, n)[..., :length] for n in names})


@functools.partial(jax.jit, static_argnums=(0, 4))
def _sample_jit(config, params, prompts, key, sampling, layers):
  weights = in_compute_dtype(config, params | {"layers": layers})
  return sample_groups(config, params, prompts, key, sampling, weights)


def generate(
  config: DecoderConfig,
  params: Params,
  prompts: Sequence[Sequence[int]],
  *,
  group_size: int = 1,
  max_tokens: int = 64,
  temperature: float = 1.0,
  seed: int = 0,
  stop_ids: Sequence[int] = (),
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  batch_prompts: int = 16,
  between: Callable[[], None] = lambda: None,
) -> list[list[list[int]]]:
  """Completes any number of prompts of any lengths.

  Prompts run in padded buckets of similar lengths, at most `batch_prompts` at a time; neither
  changes what a prompt's candidates are.

  Args:
    config: the decoder.
    params: its parameters.
    prompts: token ids, each prompt with at least one.
    group_size: G, candidates a prompt.
    max_tokens: the most tokens of a completion.
    temperature: 0 is greedy.
    seed: of the candidates; prompt i, candidate g depends on (seed, i, g) alone.
    stop_ids: tokens that end a completion.
    top_k: see `SamplingConfig`; so for `top_p` and `min_p`.
    top_p: as above.
    min_p: as above.
    batch_prompts: prompts decoded at the same time.
    between: called before each batch; may raise.

  Returns:
    For each prompt G lists of token ids, the stop token included when there was one.

  Raises:
    ValueError: an empty prompt, or settings out of range.
  """
  if not all(len(p) for p in prompts):
    raise ValueError("every prompt needs at least one token")
  pad_id = config.pad_token_id or 0
  cfg = SamplingConfig(
    group_size=group_size,
    max_tokens=max_tokens,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    min_p=min_p,
    stop_ids=tuple(int(i) for i in stop_ids),
    pad_id=pad_id,
  )
  key, layers = jax.random.key(seed), layers_apart(config, params)  # once for all batches
  bucket = lambda i: bucket_length(len(prompts[i]), LENGTH_BUCKETS)
  order = sorted(range(len(prompts)), key=bucket)
  results: list[list[list[int]]] = [[] for _ in prompts]
  while order:
    between()
    length = bucket(order[0])
    rows = min(batch_prompts, max(1, PREFILL_TOKENS // length))
    chosen = [i for i in order[:rows] if bucket(i) == length]
    order = order[len(chosen) :]
    filled = chosen + [chosen[-1]] * (rows - len(chosen))  # one shape a bucket
    tokens, mask = pad_prompts([list(prompts[i]) for i in filled], length, pad_id)
    index = np.asarray(filled, np.int32)
    rollout = _sample_jit(config, params, Prompts(tokens, mask, index), key, cfg, layers)
    drawn, kept = hosts.fetch((rollout.tokens, rollout.completion_mask))
    for row, i in enumerate(chosen):
      results[i] = [t[m].tolist() for t, m in zip(drawn[row], kept[row], strict=True)]
  return results
