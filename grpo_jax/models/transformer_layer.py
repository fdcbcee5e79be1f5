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

from grpo_jax.models.attention import attend_completion, attend_prompt, rotate
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
    completion_mask: [T, T'] bool, which of its own tokens a completion token sees.
  """

  prompt: int = struct.field(pytree_node=False)
  group: int = struct.field(pytree_node=False)
  positions: jax.Array
  prompt_mask: Array
  completion_mask: jax.Array | None = None


class Layer(nn.Module):
  """One pre-norm block: attention, then SwiGLU (arXiv:2002.05202)."""

  config: DecoderConfig

  def setup(self):
    norm = lambda: RMSNorm(self.config.rms_norm_eps)
    self.attn_norm, self.mlp_norm = norm(), norm()
    self.q, self.k, self.v, self.o = (Dense() for _ in range(4))
    if self.config.qk_norm:
      self.q_norm, self.k_norm = norm(), norm()
    self.gate, self.up, self.down = (Dense() for _ in range(3))

  def __call__(self, x, rope, row: Row, prompt: LayerKV | None, own: LayerKV | None, step):
    """Maps x [P, L, D] to the next x and the layer's prompt and completion keys and values."""
    shape = x.shape
    # All tokens in one axis: XLA on CPU is slow at sums over arrays that begin with an axis of one.
    x = x.reshape(-1, shape[-1])
    attended, prompt, own = self.attention(self.attn_norm(x), rope, row, prompt, own, step)
    x = x + self.o(attended)
    h = self.mlp_norm(x)
    x = x + self.down(nn.silu(self.gate(h)) * self.up(h))
    return x.reshape(shape), prompt, own

  def attention(self, x, rope, row: Row, prompt: LayerKV | None, own: LayerKV | None, step):
    """Maps tokens [P * L, D] to what they attend to [P * L, Q * H], and the keys and values."""
    c = self.config
    split = lambda y, heads: y.reshape(row.positions.shape[0], -1, heads, c.head_dim)
    q, k, v = (split(self.q(x), c.num_heads), split(self.k(x), c.num_kv_heads),
               split(self.v(x), c.num_kv_heads))  # fmt: skip
    if c.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    q, k = rotate(q, *rope), rotate(k, *rope)

    # Splitting at once, where slicing twice would cost a padded sum in the backward pass.
    (q, own_q), (k, own_k), (v, own_v) = (jnp.split(y, [row.prompt], axis=1) for y in (q, k, v))
    parts = []
    if row.prompt:
      prompt = as_cached(k, v)
      parts.append(attend_prompt(q, prompt, row.prompt_mask))
    if row.group:
      grouped = lambda y: y.reshape(y.shape[0], row.group, -1, *y.shape[2:])
      fresh = as_cached(grouped(own_k), grouped(own_v))
      own = fresh if own is None else _write(own, fresh, step)
      assert prompt is not None and row.completion_mask is not None  # a group continues something
      out = attend_completion(grouped(own_q), prompt, own, row.prompt_mask, row.completion_mask)
      parts.append(out.reshape(out.shape[0], -1, out.shape[-1]))
    out = jnp.concatenate(parts, axis=1)
    return out.reshape(-1, out.shape[-1]), prompt, own


def _write(cache: LayerKV, fresh: LayerKV, step: jax.Array) -> LayerKV:
  """Puts one token's keys and values at slot `step` of every candidate."""
  put = lambda old, new, axis: lax.dynamic_update_slice_in_dim(
    old, new.astype(old.dtype), step, axis
  )
  return LayerKV(put(cache.k, fresh.k, -1), put(cache.v, fresh.v, -2))


@functools.partial(jax.jit, static_argnums=0)
def apply_layer(config: DecoderConfig, params, x, rope, row, prompt=None, own=None, step=None):
  """Calls `Layer` with its parameters, under `jit`: traced once, not again for each layer."""
  return Layer(config).apply({"params": params}, x, rope, row, prompt, own, step)
