"""One layer of the decoder, and the row of tokens that it works on.

Shape legend: P prompts, G group, S prompt tokens, T completion tokens, L tokens in a row, D width,
Q query heads, K key/value heads, H head width.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from grpo_jax.models.attention import (
  Window,
  attend_completion,
  attend_prompt,
  in_window,
  rotate,
)
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.kv_cache import LayerKV, as_cached
from grpo_jax.models.layers import Dense, RMSNorm
from grpo_jax.types import Array


@struct.dataclass
class Row:
  """How the L = S + G * T tokens of a row are laid out, and what may be seen.

  Attributes:
    prompt: S, prompt tokens in the row (0 when the prompt comes from a cache).
    group: G (0 when the row holds a prompt only).
    positions: [P, L] int32, RoPE positions.
    prompt_mask: [P, S'] bool, real tokens of the prompt in the row or in the cache.
    slots: [T] int32, the places of a completion's tokens in its own cache.
  """

  prompt: int = struct.field(pytree_node=False)
  group: int = struct.field(pytree_node=False)
  positions: jax.Array
  prompt_mask: Array
  slots: jax.Array | None = None


class Layer(nn.Module):
  """One pre-norm block: attention, then a gated mlp (arXiv:2002.05202)."""

  config: DecoderConfig

  def setup(self):
    norm = lambda: RMSNorm(self.config.rms_norm_eps, self.config.norm_offset)
    self.attn_norm, self.mlp_norm = norm(), norm()
    if self.config.post_norms:
      self.post_attn_norm, self.post_mlp_norm = norm(), norm()
    self.q, self.k, self.v, self.o = (Dense() for _ in range(4))
    if self.config.qk_norm:
      self.q_norm, self.k_norm = norm(), norm()
    self.gate, self.up, self.down = (Dense() for _ in range(3))

  def __call__(
    self, x, rope, row: Row, window: Window, prompt: LayerKV | None, own: LayerKV | None
  ):
    """Maps x [P, L, D] to the next x and the layer's prompt and completion keys and values."""
    shape = x.shape
    # All tokens in one axis: see `xla_cpu`.
    x = x.reshape(-1, shape[-1])
    attended, prompt, own = self.attention(self.attn_norm(x), rope, row, window, prompt, own)
    out = self.o(attended)
    x = x + (self.post_attn_norm(out) if self.config.post_norms else out)
    h = self.mlp_norm(x)
    out = self.down(gated(self.config.activation, self.gate(h), self.up(h)))
    x = x + (self.post_mlp_norm(out) if self.config.post_norms else out)
    return x.reshape(shape), prompt, own

  def attention(
    self, x, rope, row: Row, window: Window, prompt: LayerKV | None, own: LayerKV | None
  ):
    """Maps tokens [P * L, D] to what they attend to [P * L, Q * H], and the keys and values."""
    c = self.config
    split = lambda y, heads: y.reshape(row.positions.shape[0], -1, heads, c.head_dim)
    q, k, v = (split(self.q(x), c.num_heads), split(self.k(x), c.num_kv_heads),
               split(self.v(x), c.num_kv_heads))  # fmt: skip
    if c.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    q, k = rotate(q, *rope), rotate(k, *rope)
    if c.query_pre_attn_scalar:  # attention divides by the root of the heads' width
      q = q * (c.head_dim / c.query_pre_attn_scalar) ** 0.5

    # Splitting at once, where slicing twice would cost a padded sum in the backward pass.
    (q, own_q), (k, own_k), (v, own_v) = (jnp.split(y, [row.prompt], axis=1) for y in (q, k, v))
    parts = []
    if row.prompt:
      prompt = as_cached(k, v)
      parts.append(attend_prompt(q, prompt, row.prompt_mask, window))
    if row.group:
      grouped = lambda y: y.reshape(y.shape[0], row.group, -1, *y.shape[2:])
      fresh = as_cached(grouped(own_k), grouped(own_v))
      assert prompt is not None and row.slots is not None  # a group continues something
      own = fresh if own is None else _write(own, fresh, row.slots[0])
      seen = in_window(row.slots[:, None] - jnp.arange(own.v.shape[3]), window)
      out = attend_completion(grouped(own_q), prompt, own, _seen_prompt(row, window), seen)
      parts.append(out.reshape(out.shape[0], -1, out.shape[-1]))
    out = jnp.concatenate(parts, axis=1)
    return out.reshape(-1, out.shape[-1]), prompt, own


def gated(activation: str, gate: jax.Array, up: jax.Array) -> jax.Array:
  """activation(gate) * up, elementwise in float32, in their dtype; GLU variants (arXiv:2002.05202).

  In bfloat16 the backward pass keeps the two alone and computes the float32 values again.
  """
  activate = nn.silu if activation == "silu" else nn.gelu  # by tanh
  if gate.dtype == jnp.float32:
    return activate(gate) * up

  @jax.checkpoint
  def wide(gate, up):
    return (activate(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)

  return wide(gate, up)


def _seen_prompt(row: Row, window: Window) -> Array:
  """What completions see of their prompt, as `attend_completion` takes it."""
  if window is None:
    return row.prompt_mask
  first = row.positions[:, row.prompt :].reshape(len(row.positions), row.group, -1)[:, 0]  # [P, T]
  back = first[..., None] - positions_of(row.prompt_mask)[:, None]
  return in_window(back, window) & row.prompt_mask[:, None]


def positions_of(mask: Array) -> jax.Array:
  """RoPE positions [.., L] int32 of a mask [.., L]: the n-th real token is at n, on either side."""
  return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=-1) - 1, 0)


def _write(cache: LayerKV, fresh: LayerKV, slot: jax.Array) -> LayerKV:
  """Puts one token's keys and values at a slot of every candidate's cache."""
  put = lambda old, new, axis: lax.dynamic_update_slice_in_dim(
    old, new.astype(old.dtype), slot, axis
  )
  return LayerKV(put(cache.k, fresh.k, -1), put(cache.v, fresh.v, -2))


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply_layer(
  config: DecoderConfig,
  window: int | None,
  params,
  x,
  rope,
  row,
  scanned=None,
  prompt=None,
  own=None,
):
  """Calls `Layer` with its parameters, under `jit`: traced once, not again for each layer.

  `scanned` is the layer's window where layers have different ones.
  """
  seen = window if scanned is None else scanned
  return Layer(config).apply({"params": params}, x, rope, row, seen, prompt, own)
