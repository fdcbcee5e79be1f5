"""Attention of long sequences in blocks of rows, whose scores the backward pass computes again.

Each block sees all of its keys at once, so its softmax is the plain one of `attention.py`. Memory
grows with S and not with S^2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from grpo_jax.models.kv_cache import LayerKV

DENSE_SCORES = 2**27  # scores that one prompt may hold at once: 512 MiB in float32
BLOCK_SCORES = 2**23  # scores of a block, in all heads of one prompt: 32 MiB


def prompt_in_blocks(q: jax.Array) -> bool:
  """Whether prompts of queries [P, S, Q, H] are long enough for blocks; known when tracing."""
  _, length, heads, _ = q.shape
  return heads * length**2 > DENSE_SCORES


def completion_in_blocks(q: jax.Array, prompt: LayerKV, own: LayerKV) -> bool:
  """Whether completions of queries [P, G, T, Q, H] are; decoding, T = 1, never is."""
  _, group, length, heads, _ = q.shape
  keys = prompt.v.shape[2] + own.v.shape[3]
  return length > 1 and heads * group * length * keys > DENSE_SCORES


def in_blocks(
  function: Callable[..., jax.Array], scores: int, shared: Any, known: Any, rows: Any, seen: Any
) -> jax.Array:
  """Maps over rows a block at a time; the backward pass computes each block again.

  Args:
    function: (shared, known, block of rows, block of seen) -> [M, ..]; closes over no array.
    scores: how many scores each row has, in all heads.
    shared: arrays that every block reads, keys and values.
    known: the same, without a gradient: masks.
    rows: an array [L, ..], the queries.
    seen: arrays [L, ..] without a gradient.

  Returns:
    [L, ..].
  """
  length = rows.shape[0]
  blocks = -(-length // max(BLOCK_SCORES // scores, 1))
  size = -(-length // blocks)  # even blocks: little filling at the end
  fill = lambda x: jnp.pad(x, ((0, blocks * size - length), *((0, 0),) * (x.ndim - 1)))
  cut = lambda x: fill(x).reshape(blocks, size, *x.shape[1:])
  out = _mapped(function, shared, known, cut(rows), jax.tree.map(cut, seen))
  return out.reshape(blocks * size, *out.shape[2:])[:length]


# Not `jax.checkpoint`: inside a loop over layers, jax would take the masks of all blocks, which are
# the same in every layer, out of that loop and keep them, [L, S] bits for each head.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mapped(function, shared, known, rows, seen):
  return lax.map(lambda block: function(shared, known, *block), (rows, seen))


def _forward(function, shared, known, rows, seen):
  return _mapped(function, shared, known, rows, seen), (shared, known, rows, seen)


def _backward(function, saved, cotangents):
  shared, known, rows, seen = saved

  def step(total, block):
    rows, seen, cotangent = block
    _, pull = jax.vjp(lambda shared, rows: function(shared, known, rows, seen), shared, rows)
    part, slope = pull(cotangent)
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), total, part), slope

  start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shared)
  total, slopes = lax.scan(step, start, (rows, seen, cotangents))
  return jax.tree.map(lambda x, y: x.astype(y.dtype), total, shared), None, slopes, None


_mapped.defvjp(_forward, _backward)
