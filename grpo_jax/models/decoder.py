"""The decoder: pure functions of a config, a tree of parameters and tokens.

Three ways in share one set of weights and one attention core:

* `prefill`: prompts `[P, S]` -> their key/value cache, stored once per prompt.
* `decode_step`: one token for each of `[P, G]` candidates, against that cache and their own.
* `completion_logprobs`: `[P, G, T]` completions given the prompts, differentiable.

A prompt and its G completions lie in one row of `S + G * T` tokens, `[prompt | c_1 | ... | c_G]`.
Everything that works token by token (projections, norms, MLP) runs on the whole row at once;
only attention knows the tree: a prompt token sees its past, a completion token sees the prompt and
its own past. So a prompt is encoded once for its whole group, in the backward pass too, and the
result is exactly that of the repeated layout.

Shape legend: P prompts, G group, S prompt tokens, T completion tokens, L tokens in a row, D width,
Q query heads, K key/value heads, R = Q / K, H head width, V vocabulary, N layers.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.kv_cache import CompletionCache, LayerKV, PromptCache
from grpo_jax.models.layers import RMSNorm
from grpo_jax.models.parameters import Params, in_bits, in_compute_dtype, matrix, rows_of
from grpo_jax.models.placement import looked_up, split_prompts
from grpo_jax.models.rope import rope_frequencies
from grpo_jax.models.transformer_layer import Row, apply_layer, positions_of
from grpo_jax.models.xla_cpu import KEPT, flat, kept, scores_of, stored
from grpo_jax.types import Array

EVERYTHING = 2**30  # a window that no sequence fills
# What of a layer the backward pass computes again: nothing, all but the products with weights, all.
Remat = Literal["none", "dots", "layers"]


def _trunk(
  config: DecoderConfig,
  params: Params,
  tokens: Array,
  row: Row,
  *,
  remat: Remat = "none",
  caching: bool = False,
):
  """Runs the stack on tokens [P, L]; one loop over the layers, compiled in the time of one.

  Returns:
    The hidden states [P, L, D] before the last norm, and with `caching` the layers' prompt keys and
    values, stacked.
  """
  x, ropes = _embed(config, params, tokens), _rope_tables(config, row)
  windows = config.layer_windows
  # Layers that differ have their windows scanned with their weights: one body for all of them.
  alike = len(set(windows)) == 1
  scanned = None if alike else jnp.array([window or EVERYTHING for window in windows])

  def body(x, given):
    layer, window = given
    x, layer = kept(x), in_compute_dtype(config, layer)
    rope = _rope_of(ropes, windows[0] > 0 if alike else window < EVERYTHING)
    x, prompt, _ = apply_layer(config, windows[0] or None, layer, x, rope, row, window)
    return split_prompts(x), prompt if caching else None

  if remat != "none":
    keep = jax.checkpoint_policies.save_only_these_names(KEPT) if remat == "dots" else None
    body = jax.checkpoint(body, policy=keep, prevent_cse=False)
  layers = in_bits(config, params["layers"])
  return lax.scan(body, x, (layers, scanned))


def _embed(config: DecoderConfig, params: Params, tokens: Array) -> jax.Array:
  """The tokens' embeddings [P, L, D]."""
  with jax.named_scope("embed"):
    x = rows_of(config, params["embed"]["embedding"], tokens)
    if config.scale_embedding:
      x = x * jnp.asarray(config.hidden_size**0.5, x.dtype)
  return looked_up(x)


def _rope_tables(config: DecoderConfig, row: Row) -> list[tuple[jax.Array, jax.Array]]:
  """Cosines and sines of the tokens' positions; a second pair for windows that have their own."""

  def table(local: bool):
    frequencies, factor = rope_frequencies(config, local=local)
    angles = row.positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies)
    return stored(jnp.cos(angles) * factor), stored(jnp.sin(angles) * factor)

  return [table(local) for local in ((False, True) if config.local_rope_theta else (False,))]


def _rope_of(tables: list[tuple[jax.Array, jax.Array]], has_window: bool | jax.Array):
  """The pair for a layer with a window or without one."""
  if len(tables) == 1:
    return tables[0]
  if isinstance(has_window, bool):
    return tables[has_window]
  return jax.tree.map(lambda far, near: jnp.where(has_window, near, far), *tables)


def _normed(config: DecoderConfig, params: Params, x: jax.Array) -> jax.Array:
  """The last norm, of hidden states [.., D]."""
  norm = RMSNorm(config.rms_norm_eps, config.norm_offset).bind({"params": params["final_norm"]})
  return flat(norm, x)


def _last_real(x: jax.Array, mask: Array) -> jax.Array:
  """Of x [P, S, D] each prompt's last real token, [P, 1, D]."""
  last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  return jnp.take_along_axis(x, last[:, None, None], axis=1)


def output_embedding(config: DecoderConfig, params: Params) -> jax.Array:
  """The output projection as [V, D], in the compute dtype: a row for each token."""
  if config.tie_embeddings:
    return matrix(config, params["embed"]["embedding"])
  return matrix(config, params["head"]["kernel"]).T


def logits_of(config: DecoderConfig, params: Params, hidden: jax.Array) -> jax.Array:
  """Float32 logits [.., V] of normalised hidden states [.., D]."""
  return scores_of(hidden, output_embedding(config, params))


def forward(config: DecoderConfig, params: Params, tokens: Array, mask: Array):
  """Computes logits of whole sequences, without a cache.

  Args:
    config: the decoder.
    params: its parameters.
    tokens: [B, L] int.
    mask: [B, L] bool or int, non-zero on real tokens; padding on either side.

  Returns:
    [B, L, V] float32; rows of padding are finite and meaningless.
  """
  mask = jnp.asarray(mask, bool)
  x, _ = _trunk(config, params, tokens, Row(tokens.shape[1], 0, positions_of(mask), mask))
  return logits_of(config, params, _normed(config, params, x))


def prefill(config: DecoderConfig, params: Params, tokens: Array, mask: Array):
  """Encodes prompts once.

  Args:
    config: the decoder.
    params: its parameters.
    tokens: [P, S] int.
    mask: [P, S] bool, real tokens; padding on either side.

  Returns:
    The `PromptCache`, and the hidden state [P, D] that predicts the first completion token.
  """
  row = Row(tokens.shape[1], 0, positions_of(mask), mask)
  x, stacked = _trunk(config, params, tokens, row, caching=True)
  layers = tuple(LayerKV(k, v) for k, v in zip(*stacked, strict=True))
  cache = PromptCache(layers, mask, mask.sum(-1).astype(jnp.int32))
  return cache, _normed(config, params, _last_real(x, mask))[:, 0]


def decode_step(
  config: DecoderConfig,
  params: Params,
  tokens: jax.Array,
  prompt: PromptCache,
  own: CompletionCache,
  step: jax.Array,
):
  """Feeds one token of every candidate.

  Args:
    config: the decoder.
    params: its parameters, `unstacked`.
    tokens: [P, G] int, the tokens at completion position `step`.
    prompt: from `prefill`.
    own: the candidates' cache, of T slots.
    step: int32 scalar; its slot of `own` is written.

  Returns:
    The hidden states [P, G, D] that predict the tokens at `step + 1`, and the updated cache.
  """
  group = tokens.shape[1]
  positions = jnp.broadcast_to((prompt.length + step)[:, None], tokens.shape)
  row = Row(0, group, positions, prompt.mask, jnp.asarray(step, jnp.int32)[None])
  x, ropes = _embed(config, params, tokens), _rope_tables(config, row)
  written = []
  each = zip(params["layers"], config.layer_windows, prompt.layers, own, strict=True)
  for layer, window, given, mine in each:
    rope = _rope_of(ropes, window > 0)
    x, _, mine = apply_layer(config, window or None, layer, x, rope, row, None, given, mine)
    x = split_prompts(x)
    written.append(mine)
  return _normed(config, params, x), tuple(written)


def completion_hidden(
  config: DecoderConfig,
  params: Params,
  prompt_tokens: Array,
  prompt_mask: Array,
  completion_tokens: Array,
  *,
  remat: Remat = "none",
) -> jax.Array:
  """Computes the hidden states that predict each completion token, the prompt encoded once.

  Args:
    config: the decoder.
    params: its parameters.
    prompt_tokens: [P, S] int.
    prompt_mask: [P, S] bool.
    completion_tokens: [P, G, T] int, padded on the right.
    remat: what of a layer is computed again in the backward pass instead of kept: `none`; `dots`,
      all but the products with weights; `layers`, all.

  Returns:
    [P, G, T, D]; entry t predicts `completion_tokens[..., t]` (entry 0 is the prompt's last
    hidden state, the same for the whole group).
  """
  prompts, group, length = completion_tokens.shape
  fed = completion_tokens[..., : length - 1].reshape(prompts, -1)  # nothing follows the last token
  start = prompt_mask.sum(-1).astype(jnp.int32)
  own_positions = jnp.tile(jnp.arange(length - 1), group) + start[:, None]
  row = Row(
    prompt_tokens.shape[1],
    group if length > 1 else 0,
    jnp.concatenate([positions_of(prompt_mask), own_positions], axis=1),
    prompt_mask,
    jnp.arange(length - 1),
  )
  tokens = jnp.concatenate([prompt_tokens, fed.astype(prompt_tokens.dtype)], axis=1)
  x, _ = _trunk(config, params, tokens, row, remat=remat)
  # Of a prompt the last token alone predicts something.
  size = prompt_tokens.shape[1]
  x = jnp.concatenate([_last_real(x[:, :size], prompt_mask), x[:, size:]], axis=1)
  hidden = _normed(config, params, x)
  first = jnp.broadcast_to(hidden[:, None, :1], (prompts, group, 1, hidden.shape[-1]))
  rest = hidden[:, 1:].reshape(prompts, group, length - 1, hidden.shape[-1])
  return jnp.concatenate([first, rest], axis=2)
