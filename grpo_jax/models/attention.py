"""The attention core: the prompts' own, and that of their completions to them and to themselves.

Shape legend: P prompts, G group, S prompt tokens, T completion tokens, L tokens in a row, Q query
heads, K key/value heads, R = Q / K, H head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from grpo_jax.models.kv_cache import LayerKV
from grpo_jax.types import Array

# Finite, so that a row without any visible key (padding) gives finite garbage and no NaN gradient.
MASKED = -1e30


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


def attend_prompt(q: jax.Array, kv: LayerKV, mask: Array) -> jax.Array:
  """Causal self-attention of the prompts.

  Args:
    q: [P, S, Q, H].
    kv: [P, K, S, H] each.
    mask: [P, S] bool, real tokens.

  Returns:
    [P, S, Q * H].
  """
  prompts, length, heads, width = q.shape
  kv_heads = kv.k.shape[1]
  q = (q * width**-0.5).reshape(prompts, length, kv_heads, heads // kv_heads, width)
  q = jnp.moveaxis(q, 1, 3).reshape(prompts, kv_heads, -1, width)  # [P, K, R * S, H]
  scores = jnp.einsum("pkmh,pksh->pkms", q, kv.k, preferred_element_type=jnp.float32)
  scores = scores.reshape(prompts, kv_heads, -1, length, length)
  seen = jnp.tril(jnp.ones((length, length), bool)) & mask[:, None, :]
  scores = jnp.where(seen[:, None, None], scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
  out = jnp.einsum("pkms,pksh->pkmh", weights.reshape(prompts, kv_heads, -1, length), kv.v)
  out = jnp.moveaxis(out.reshape(prompts, kv_heads, -1, length, width), 3, 1)
  return out.reshape(prompts, length, heads * width)


def attend_completion(
  q: jax.Array, prompt: LayerKV, own: LayerKV, prompt_mask: Array, own_mask: jax.Array
) -> jax.Array:
  """Attention of completion tokens to the shared prompt and to their own past: one softmax.

  The prompt's keys are read once per group: its scores are one product over the G * T queries of
  a prompt. Both parts share the maximum and the sum, so this is exact.

  Args:
    q: [P, G, T, Q, H].
    prompt: [P, K, S, H] each.
    own: [P, G, K, T', H] each.
    prompt_mask: [P, S] bool, real tokens.
    own_mask: bool, broadcastable to [P, G, T, T'].

  Returns:
    [P, G, T, Q * H].
  """
  prompts, group, length, heads, width = q.shape
  kv_heads = prompt.k.shape[1]
  # Both products are plain batched matrix products, [P, K] with M = G * T * R rows and [P, G, K]
  # with T * R rows: the large score arrays are never transposed, only the small results are.
  q = (q * width**-0.5).reshape(prompts, group, length, kv_heads, heads // kv_heads, width)
  far_q = q.transpose(0, 3, 1, 2, 4, 5).reshape(prompts, kv_heads, -1, width)
  near_q = q.transpose(0, 1, 3, 2, 4, 5).reshape(prompts, group, kv_heads, -1, width)
  far = jnp.einsum("pkmh,pksh->pkms", far_q, prompt.k, preferred_element_type=jnp.float32)
  near = jnp.einsum("pgkmh,pgkuh->pgkmu", near_q, own.k, preferred_element_type=jnp.float32)
  far = jnp.where(prompt_mask[:, None, None], far, MASKED)
  own_mask = jnp.repeat(own_mask, heads // kv_heads, axis=-2)  # a row for each of T * R queries
  near = jnp.where(own_mask[:, :, None], near, MASKED)

  far_rows = lambda x: x.reshape(prompts, kv_heads, group, -1, *x.shape[3:])  # [P, K, G, T * R]
  far_top, near_top = far.max(-1), near.max(-1)
  top = lax.stop_gradient(jnp.maximum(far_rows(far_top), near_top.swapaxes(1, 2)))
  far = jnp.exp(far - top.reshape(far_top.shape)[..., None])
  near = jnp.exp(near - top.swapaxes(1, 2)[..., None])
  total = far_rows(far.sum(-1)) + near.sum(-1).swapaxes(1, 2)
  out = far_rows(jnp.einsum("pkms,pksh->pkmh", far.astype(q.dtype), prompt.v))
  out = out + jnp.einsum("pgkmu,pgkuh->pgkmh", near.astype(q.dtype), own.v).swapaxes(1, 2)
  out = (out / total[..., None]).astype(q.dtype)  # [P, K, G, T * R, H]
  out = out.reshape(prompts, kv_heads, group, length, -1, width).transpose(0, 2, 3, 1, 4, 5)
  return out.reshape(prompts, group, length, heads * width)
