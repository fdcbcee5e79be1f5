"""The attention core: the prompts' own, and that of their completions to them and to themselves.

Shape legend: P prompts, G group, S prompt tokens, T completion tokens, L tokens in a row, Q query
heads, K key/value heads, R = Q / K, H head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from grpo_jax.models import blockwise, cudnn, splash
from grpo_jax.models.kv_cache import LayerKV
from grpo_jax.models.xla_cpu import over_first, product
from grpo_jax.types import Array

# How many tokens back one sees, itself included: all (None), a number, or one of the layer scanned.
Window = int | jax.Array | None
# Finite, so that a row without any visible key (padding) gives finite garbage and no NaN gradient.
MASKED = -1e30
# How a prompt's rows are cut: a block is worth its own products from some length on, and each adds
# to what is compiled.
BLOCK_ROWS, MOST_BLOCKS = 128, 4


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Applies rotary position embedding (arXiv:2104.09864) to x [P, L, heads, H]; halves, not pairs.

  Args:
    x: [P, L, heads, H].
    cos: [P, L, 1, H/2] float32.
    sin: [P, L, 1, H/2] float32.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def attend_prompt(q: jax.Array, kv: LayerKV, mask: Array, window: Window = None) -> jax.Array:
  """Causal self-attention of the prompts.

  Args:
    q: [P, S, Q, H].
    kv: keys [P, K, H, S] and values [P, K, S, H].
    mask: [P, S] bool, real tokens.
    window: how many tokens back each one sees, itself included; None sees all. Real tokens lie
      side by side, so that places tell distances.

  Returns:
    [P, S, Q * H].
  """
  plain = functools.partial(_over_prompts, functools.partial(_attend_prompt, window=window))
  kernels = {}
  if not isinstance(window, jax.Array):
    if blockwise.prompt_in_blocks(q) and splash.suits(q, kv):
      kernels["tpu"] = functools.partial(splash.attend_prompt, window=window)
    if cudnn.suits(q, kv):
      kernels["cuda"] = functools.partial(cudnn.attend_prompt, window=window)
  if not kernels:
    return plain(q, kv, mask)
  return lax.platform_dependent(q, kv, mask, **kernels, default=plain)


def attend_completion(
  q: jax.Array, prompt: LayerKV, own: LayerKV, prompt_mask: Array, own_mask: jax.Array
) -> jax.Array:
  """Attention of completion tokens to the shared prompt and to their own past: one softmax.

  The prompt's keys are read once per group: its scores are one product over the G * T queries of
  a prompt. Both parts share the maximum and the sum, so this is exact.

  Args:
    q: [P, G, T, Q, H].
    prompt: keys [P, K, H, S] and values [P, K, S, H].
    own: keys [P, G, K, H, T'] and values [P, G, K, T', H].
    prompt_mask: [P, S] bool, real tokens, or [P, T, S], those that each token sees.
    own_mask: [T, T'] bool, which of its own tokens each one sees.

  Returns:
    [P, G, T, Q * H].
  """
  in_blocks = blockwise.completion_in_blocks(q, prompt, own)
  attend = _attend_completion_in_blocks if in_blocks else _attend_completion
  return _over_prompts(functools.partial(attend, own_mask=own_mask), q, prompt, own, prompt_mask)


def _over_prompts(function: Callable[..., jax.Array], *args: Any) -> jax.Array:
  return over_first(lambda f, *args: jax.vmap(f)(*args), function, *args)


def _attend_prompt(q: jax.Array, kv: LayerKV, mask: Array, window: Window = None) -> jax.Array:
  """In a few blocks of rows, each with the keys up to its own last: most of the future is left out.

  Scores of hidden keys cost as much as others; four blocks are left with five eighths of them all.
  """
  length, heads, _ = q.shape
  long = blockwise.prompt_in_blocks(q[None])
  rows = -(-length // max(1, min(MOST_BLOCKS * (1 + long), length // BLOCK_ROWS)))
  parts = []
  for start in range(0, length, rows):
    end = min(start + rows, length)
    first = max(0, start + 1 - window) if isinstance(window, int) else 0
    keys = LayerKV(kv.k[..., first:end], kv.v[:, first:end])
    real = jnp.asarray(mask[first:end])
    args = (keys, (real, window), q[start:end], jnp.arange(start, end) - first)
    attended = (
      blockwise.in_blocks(_attend_past, heads * (end - first), *args)
      if long
      else _attend_past(*args)
    )
    parts.append(attended)
  return jnp.concatenate(parts)


def _attend_past(
  kv: LayerKV, known: tuple[jax.Array, Window], q: jax.Array, place: jax.Array
) -> jax.Array:
  """Attention of rows [M, Q, H] at `place` [M] to the real ones of N keys, up to each row's own."""
  real, window = known
  back = place[:, None] - jnp.arange(real.size)
  return _attend_seen(q, kv, in_window(back, window) & real)


def in_window(back: jax.Array, window: Window) -> jax.Array:
  """Which tokens, so many places `back`, are seen: none later, none beyond the window."""
  return back >= 0 if window is None else (back >= 0) & (back < window)


def _attend_seen(q: jax.Array, kv: LayerKV, seen: jax.Array) -> jax.Array:
  """Attention of rows [M, Q, H] to N keys as `seen` [M, N] says -> [M, Q * H]."""
  rows, heads, width = q.shape
  kv_heads, _, keys = kv.k.shape
  q = (q * width**-0.5).reshape(rows, kv_heads, heads // kv_heads, width)
  q = jnp.moveaxis(q, 0, 2).reshape(kv_heads, -1, width)  # [K, R * M, H]
  scores = product(q, kv.k)
  scores = jnp.where(seen, scores.reshape(kv_heads, -1, rows, keys), MASKED)
  weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
  total = weights.sum(-1).reshape(kv_heads, -1, 1)
  out = product(weights.astype(q.dtype).reshape(kv_heads, -1, keys), kv.v)
  out = (out / total).astype(q.dtype)
  return jnp.moveaxis(out.reshape(kv_heads, -1, rows, width), 2, 0).reshape(rows, heads * width)


def _attend_completion_in_blocks(
  q: jax.Array, prompt: LayerKV, own: LayerKV, prompt_mask: Array, own_mask: jax.Array
) -> jax.Array:
  """One completion at a time, and of each some rows at a time."""
  scores = q.shape[2] * (prompt.v.shape[1] + own_mask.shape[1])

  by_row = prompt_mask.ndim > 1

  def rows_of_one(shared, known, q, seen):
    prompt, own = shared
    alone = jax.tree.map(lambda x: x[None], own)
    return _attend_completion(q[None], prompt, alone, seen[1] if by_row else known, seen[0])[0]

  def one(completion):
    q, own = completion
    masks = (None, (own_mask, prompt_mask)) if by_row else (prompt_mask, (own_mask,))
    known, seen = masks
    return blockwise.in_blocks(rows_of_one, scores, (prompt, own), known, q, seen)

  return lax.map(one, (q, own))


def _attend_completion(
  q: jax.Array, prompt: LayerKV, own: LayerKV, prompt_mask: Array, own_mask: jax.Array
) -> jax.Array:
  group, length, heads, width = q.shape
  kv_heads = prompt.k.shape[0]
  # Both products are plain batched matrix products, [K] with M = G * T * R rows and [G, K] with
  # T * R rows: the large score arrays are never transposed, only the small results are.
  q = (q * width**-0.5).reshape(group, length, kv_heads, heads // kv_heads, width)
  far_q = q.transpose(2, 0, 1, 3, 4).reshape(kv_heads, -1, width)
  near_q = q.transpose(0, 2, 1, 3, 4).reshape(group, kv_heads, -1, width)
  far, near = product(far_q, prompt.k), product(near_q, own.k)
  each = lambda mask: jnp.repeat(mask, heads // kv_heads, axis=0)  # a row for each of T * R queries
  if prompt_mask.ndim > 1:
    by_row = far.reshape(kv_heads, group, -1, far.shape[-1])
    far = jnp.where(each(prompt_mask), by_row, MASKED).reshape(far.shape)
  else:
    far = jnp.where(prompt_mask, far, MASKED)
  own_mask = each(own_mask)
  near = jnp.where(own_mask, near, MASKED)

  far_rows = lambda x: x.reshape(kv_heads, group, -1, *x.shape[2:])  # [K, G, T * R]
  far_top, near_top = far.max(-1), near.max(-1)
  top = lax.stop_gradient(jnp.maximum(far_rows(far_top), near_top.swapaxes(0, 1)))
  far = jnp.exp(far - top.reshape(far_top.shape)[..., None])
  near = jnp.exp(near - top.swapaxes(0, 1)[..., None])
  total = far_rows(far.sum(-1)) + near.sum(-1).swapaxes(0, 1)
  out = far_rows(product(far.astype(q.dtype), prompt.v))
  out = out + product(near.astype(q.dtype), own.v).swapaxes(0, 1)
  out = (out / total[..., None]).astype(q.dtype)  # [K, G, T * R, H]
  out = out.reshape(kv_heads, group, length, -1, width).transpose(1, 2, 0, 3, 4)
  return out.reshape(group, length, heads * width)
