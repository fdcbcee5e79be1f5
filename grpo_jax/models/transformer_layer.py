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

from grpo_jax.models.attention import attend_completion, attend_last, attend_prompt, rotate
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

  def predicting(self, x: jax.Array) -> jax.Array:
    """Of x [P, L, ..] the tokens that predict a completion's: [P, 1 + G * T, ..].

    These are the prompt's last real token and all of the completions.
    """
    last = self.prompt - 1 - jnp.argmax(self.prompt_mask[:, ::-1], axis=1)
    last = last.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.concatenate([jnp.take_along_axis(x, last, axis=1), x[:, self.prompt :]], axis=1)


class Layer(nn.Module):
  """One pre-norm block: attention, then SwiGLU (arXiv:2002.05202)."""

  config: DecoderConfig

  def setup(self):
    c = self.config
    dense = lambda features, bias: Dense(features, use_bias=bias, dtype=jnp.dtype(c.dtype))
    self.attn_norm = RMSNorm(c.rms_norm_eps)
    self.q = dense(c.num_heads * c.head_dim, c.attention_bias)
    self.k = dense(c.num_kv_heads * c.head_dim, c.attention_bias)
    self.v = dense(c.num_kv_heads * c.head_dim, c.attention_bias)
    self.o = dense(c.hidden_size, c.output_bias)
    if c.qk_norm:
      self.q_norm = RMSNorm(c.rms_norm_eps)
      self.k_norm = RMSNorm(c.rms_norm_eps)
    self.mlp_norm = RMSNorm(c.rms_norm_eps)
    self.gate = dense(c.intermediate_size, False)
    self.up = dense(c.intermediate_size, False)
    self.down = dense(c.hidden_size, False)

  def __call__(
    self, x, rope, row: Row, prompt: LayerKV | None, own: LayerKV | None, step, predicting: bool
  ):
    """Maps x [P, L, D] to the next x and the layer's prompt and completion keys and values.

    With `predicting`, which is for the last layer, the next x is that of `row.predicting` alone: of
    the prompt's other tokens nobody reads more than the keys and values.
    """
    rows, length, width = x.shape
    # All tokens in one axis: XLA on CPU is slow at sums over arrays that begin with an axis of one.
    x = x.reshape(-1, width)
    h = self.attn_norm(x)
    chosen = lambda y: y
    if predicting:
      chosen = lambda y: row.predicting(y.reshape(rows, length, -1)).reshape(-1, y.shape[-1])
    x = chosen(x)
    attended, prompt, own = self.attention(h, chosen(h), rope, row, prompt, own, step, predicting)
    x = x + self.o(attended)
    h = self.mlp_norm(x)
    x = x + self.down(nn.silu(self.gate(h)) * self.up(h))
    return x.reshape(rows, -1, width), prompt, own

  def attention(
    self, x, asking, rope, row: Row, prompt: LayerKV | None, own: LayerKV | None, step,
    predicting: bool,
  ):  # fmt: skip
    """Maps tokens [P * L, D] to what those of them that ask see, and the keys and values."""
    c = self.config
    split = lambda y, heads: y.reshape(row.positions.shape[0], -1, heads, c.head_dim)
    q, k, v = (split(self.q(asking), c.num_heads), split(self.k(x), c.num_kv_heads),
               split(self.v(x), c.num_kv_heads))  # fmt: skip
    if c.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    q_rope = map(row.predicting, rope) if predicting else rope
    q, k = rotate(q, *q_rope), rotate(k, *rope)

    # Splitting at once, where slicing twice would cost a padded sum in the backward pass.
    (k, own_k), (v, own_v) = (jnp.split(y, [row.prompt], axis=1) for y in (k, v))
    q, own_q = jnp.split(q, [1 if predicting else row.prompt], axis=1)
    parts = []
    if row.prompt:
      prompt = as_cached(k, v)
      attend = attend_last if predicting else attend_prompt
      parts.append(attend(q, prompt, row.prompt_mask))
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


@functools.partial(jax.jit, static_argnums=(0, 8))
def apply_layer(config: DecoderConfig, params, x, rope, row, prompt, own, step, predicting=False):
  """Calls `Layer` with its parameters, under `jit`: traced once, not again for each layer."""
  layer = Layer(config, parent=None)
  return layer.apply({"params": params}, x, rope, row, prompt, own, step, predicting)
