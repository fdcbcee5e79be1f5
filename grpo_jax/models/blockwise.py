"""The attention of `attention.py` for long sequences, a block of scores at a time.

Softmax over blocks of keys with a running maximum and sum (Milakov & Gimelshein, arXiv:1805.02867),
and a backward pass that keeps only the log-sum-exp of each query and computes the scores of a block
again (FlashAttention-2, arXiv:2307.08691). Blocks that lie wholly in the future are not visited.
Memory grows with S and not with S^2; `attention._attend_prompt` and `_attend_completion` are the
reference.

Shape legend: G group, S prompt tokens, T completion tokens, Q query heads, K key/value heads,
R = Q / K, H head width; a row is one of the R queries of a token and key/value head; I blocks of
M rows, J blocks of N keys.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from grpo_jax.models.kv_cache import LayerKV
from grpo_jax.types import Array

DENSE_SCORES = 2**27  # scores that one prompt may hold at once: 512 MiB in float32
BLOCK_SCORES = 2**23  # scores of a block, in all heads of one prompt: 32 MiB
BLOCK_KEYS = 1024

UNSEEN = -1e30
# What a row's maximum starts from: so far above UNSEEN that exp(UNSEEN - LOWEST) is exactly 0. A
# row without any visible key (padding) gets zeros and sends no gradient.
LOWEST = -5e29
LAST = np.int32(2**30)  # later than any position


class _Attended(NamedTuple):
  """What rows see in one set of keys; two such sets are merged exactly by their log-sum-exps.

  Attributes:
    out: [K, rows, H], compute dtype.
    lse: [K, rows] float32, log of the sum of exp(score); about LOWEST where nothing is seen.
  """

  out: jax.Array
  lse: jax.Array


def prompt_in_blocks(q: jax.Array) -> bool:
  """Whether prompts of queries [P, S, Q, H] are long enough for blocks; known when tracing."""
  _, length, heads, _ = q.shape
  return heads * length**2 > DENSE_SCORES


def completion_in_blocks(q: jax.Array, prompt: LayerKV, own: LayerKV) -> bool:
  """Whether completions of queries [P, G, T, Q, H] are; decoding, T = 1, never is."""
  _, group, length, heads, _ = q.shape
  keys = prompt.v.shape[2] + own.v.shape[3]
  return length > 1 and heads * group * length * keys > DENSE_SCORES


def attend_prompt(q: jax.Array, kv: LayerKV, mask: Array) -> jax.Array:
  """Causal self-attention of one prompt.

  Args:
    q: [S, Q, H].
    kv: keys [K, H, S] and values [K, S, H].
    mask: [S] bool, real tokens; padding on either side.

  Returns:
    [S, Q * H]; zeros where a token sees no real one.
  """
  length, heads, width = q.shape
  kv_heads = kv.k.shape[0]
  shared = heads // kv_heads
  q = (q * width**-0.5).reshape(length, kv_heads, shared, width)
  rows = q.swapaxes(0, 1).reshape(kv_heads, -1, width)  # [K, S * R, H]
  position = jnp.arange(length, dtype=jnp.int32)
  seen_to, at = jnp.repeat(position, shared), jnp.where(mask, position, LAST)
  out = _attend(rows, kv, seen_to, at, heads=kv_heads, rows_per_key=shared).out
  return out.reshape(kv_heads, length, shared, width).swapaxes(0, 1).reshape(length, heads * width)


def attend_completion(
  q: jax.Array, prompt: LayerKV, own: LayerKV, prompt_mask: Array, own_mask: jax.Array
) -> jax.Array:
  """Attention of one prompt's completion tokens to it and to their own past: one softmax.

  Args:
    q: [G, T, Q, H].
    prompt: keys [K, H, S] and values [K, S, H].
    own: keys [G, K, H, T'] and values [G, K, T', H].
    prompt_mask: [S] bool, real tokens.
    own_mask: [T, T'] bool; each token sees its completion up to some token, as in a causal mask.

  Returns:
    [G, T, Q * H].
  """
  group, length, heads, width = q.shape
  kv_heads, own_length = own.v.shape[1:3]
  shared = heads // kv_heads
  q = (q * width**-0.5).reshape(group, length, kv_heads, shared, width)
  far_rows = q.transpose(2, 0, 1, 3, 4).reshape(kv_heads, -1, width)  # [K, G * T * R, H]
  near_rows = q.transpose(0, 2, 1, 3, 4).reshape(group, kv_heads, -1, width)  # [G, K, T * R, H]

  at = jnp.where(prompt_mask, 0, LAST)  # in no order: all of the prompt is seen
  far = _attend(far_rows, prompt, jnp.zeros(far_rows.shape[1], jnp.int32), at, heads=kv_heads)
  seen_to = jnp.repeat(own_mask.sum(-1, dtype=jnp.int32) - 1, shared)
  causal = shared if length == own_length else 0
  near = jax.vmap(
    lambda rows, kv: _attend(
      rows,
      kv,
      seen_to,
      jnp.arange(own_length, dtype=jnp.int32),
      heads=group * kv_heads,
      rows_per_key=causal,
    )
  )(near_rows, own)

  far = jax.tree.map(lambda x: x.reshape(kv_heads, group, -1, *x.shape[2:]), far)
  near = jax.tree.map(lambda x: x.swapaxes(0, 1), near)
  share = jax.nn.sigmoid(far.lse - near.lse)[..., None]  # of the far part in the sum of both
  out = (far.out * share + near.out * (1 - share)).astype(q.dtype)  # [K, G, T * R, H]
  out = out.reshape(kv_heads, group, length, shared, width).transpose(1, 2, 0, 3, 4)
  return out.reshape(group, length, heads * width)


def _attend(
  rows: jax.Array,
  kv: LayerKV,
  seen_to: jax.Array,
  at: jax.Array,
  *,
  heads: int,
  rows_per_key: int = 0,
) -> _Attended:
  """Cuts rows and keys into blocks and attends; a row sees the keys that are at its own or before.

  Args:
    rows: [K, rows, H], scaled queries.
    kv: keys [K, H, keys] and values [K, keys, H].
    seen_to: [rows] int32, the last position that each row sees.
    at: [keys] int32, the position of each key; LAST hides it.
    heads: K, times whatever this is mapped over: what shares the BLOCK_SCORES.
    rows_per_key: when not 0, row i sees no key behind i // rows_per_key, so that blocks of pairs
      that are hidden are left out.
  """
  k = kv.k.swapaxes(1, 2)
  count, keys = rows.shape[1], k.shape[1]
  block_keys = min(BLOCK_KEYS, keys)
  block_rows = min(max(BLOCK_SCORES // (heads * block_keys), 1), count)
  q, k, v = _cut(rows, block_rows), _cut(k, block_keys), _cut(kv.v, block_keys)
  seen_to = _cut(seen_to[None], block_rows, -1)[:, 0]
  at = _cut(at[None], block_keys, LAST)[:, 0]
  out, lse = _attend_blocks(q, k, v, seen_to, at, rows_per_key)
  return _Attended(_joined(out)[:, :count], _joined(lse)[:, :count])


def _cut(x: jax.Array, size: int, filler: int | np.integer = 0) -> jax.Array:
  """Cuts [K, length, ..] into [blocks, K, size, ..], the last one filled up."""
  blocks = -(-x.shape[1] // size)
  end = ((0, 0),) * (x.ndim - 2)
  x = jnp.pad(x, ((0, 0), (0, blocks * size - x.shape[1]), *end), constant_values=filler)
  return x.reshape(x.shape[0], blocks, size, *x.shape[2:]).swapaxes(0, 1)


def _joined(x: jax.Array) -> jax.Array:
  """The inverse of `_cut`, the filling left in."""
  return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])


def _pairs(q: jax.Array, k: jax.Array, rows_per_key: int) -> tuple[np.ndarray, np.ndarray]:
  """The blocks of rows and of keys that have to meet, by rows first and then by keys from 0 on."""
  (row_blocks, _, rows, _), (key_blocks, _, keys, _) = q.shape, k.shape
  meet = np.ones((row_blocks, key_blocks), bool)
  if rows_per_key:
    last = (np.arange(1, row_blocks + 1) * rows - 1) // rows_per_key
    meet = np.arange(key_blocks) * keys <= last[:, None]
  i, j = np.nonzero(meet)
  return i.astype(np.int32), j.astype(np.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend_blocks(
  q: jax.Array, k: jax.Array, v: jax.Array, seen_to: jax.Array, at: jax.Array, rows_per_key: int
) -> tuple[jax.Array, jax.Array]:
  """Outputs [I, K, M, H] and log-sum-exps [I, K, M] of rows [I, K, M, H], keys [J, K, N, H]."""

  def step(carry, pair):
    (acc, top, total), done = carry
    i, j = pair
    first = j == 0
    acc, total = jnp.where(first, 0.0, acc), jnp.where(first, 0.0, total)
    top = jnp.where(first, LOWEST, top)
    scores = _scores(q[i], k[j], seen_to[i], at[j])
    new = jnp.maximum(top, scores.max(-1))
    kept = jnp.exp(top - new)
    weights = jnp.exp(scores - new[..., None])
    total = total * kept + weights.sum(-1)
    acc = acc * kept[..., None] + _product("kmn,knh->kmh", weights.astype(v.dtype), v[j])
    # Written for every block of keys: the last one, which has seen them all, stays.
    safe = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    out = (acc / safe[..., None]).astype(q.dtype)
    done = (_put(done[0], out, i), _put(done[1], new + jnp.log(safe), i))
    return ((acc, new, total), done), None

  wide = jnp.zeros(q.shape, jnp.float32)[0]
  running = (wide, wide[..., 0], wide[..., 0])
  done = (jnp.zeros(q.shape, q.dtype), jnp.zeros(q.shape[:3], jnp.float32))
  (_, done), _ = lax.scan(step, (running, done), _pairs(q, k, rows_per_key))
  return done


def _forward(q, k, v, seen_to, at, rows_per_key):
  out, lse = _attend_blocks(q, k, v, seen_to, at, rows_per_key)
  return (out, lse), (q, k, v, seen_to, at, out, lse)


def _backward(rows_per_key, saved, cotangents):
  q, k, v, seen_to, at, out, lse = saved
  dout, dlse = cotangents
  # d score = weight * (d weight - sum of weight * d weight + d lse); the sum is that of dout * out.
  shift = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1) - dlse

  def step(carry, pair):
    row, dq, dk, dv = carry
    i, j = pair
    weights = jnp.exp(_scores(q[i], k[j], seen_to[i], at[j]) - lse[i][..., None])
    slope = weights * (_product("kmh,knh->kmn", dout[i], v[j]) - shift[i][..., None])
    slope = slope.astype(q.dtype)
    row = jnp.where(j == 0, 0.0, row) + _product("kmn,knh->kmh", slope, k[j])
    dq = _put(dq, row.astype(q.dtype), i)
    dk = _put(dk, dk[j] + _product("kmn,kmh->knh", slope, q[i]), j)
    dv = _put(dv, dv[j] + _product("kmn,kmh->knh", weights.astype(q.dtype), dout[i]), j)
    return (row, dq, dk, dv), None

  wide = lambda x: jnp.zeros(x.shape, jnp.float32)
  start = (wide(q[0]), jnp.zeros_like(q), wide(k), wide(v))
  (_, dq, dk, dv), _ = lax.scan(step, start, _pairs(q, k, rows_per_key))
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend_blocks.defvjp(_forward, _backward)


def _scores(q: jax.Array, k: jax.Array, seen_to: jax.Array, at: jax.Array) -> jax.Array:
  """One block of scores [K, M, N] float32, UNSEEN where hidden."""
  return jnp.where(at <= seen_to[:, None], _product("kmh,knh->kmn", q, k), UNSEEN)


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _put(array: jax.Array, block: jax.Array, i: jax.Array) -> jax.Array:
  return lax.dynamic_update_index_in_dim(array, block, i, axis=0)
