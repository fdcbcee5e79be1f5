"""The prompts' attention by cuDNN's fused kernel on NVIDIA GPUs: no score leaves the chip.

It takes the place of `attention.attend_prompt` in bfloat16, where a program is compiled for CUDA.
The completions see two sets of keys, which it does not know, and stay with XLA.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grpo_jax.models.kv_cache import LayerKV
from grpo_jax.models.placement import heads_divide, on_own_heads
from grpo_jax.types import Array

WIDEST = 128  # heads, and in multiples of eight: what all supported GPUs take


def suits(q: jax.Array, kv: LayerKV) -> bool:
  """Whether this process has a GPU, and the kernel takes these arrays.

  It is asked before a program is traced, for jax looks for cuDNN at that time.
  """
  width = q.shape[-1]
  takes = q.dtype == jnp.bfloat16 and width <= WIDEST and not width % 8
  return takes and heads_divide(q, kv) and jax.default_backend() == "gpu"


def attend_prompt(
  q: jax.Array, kv: LayerKV, mask: Array, *, window: int | None = None
) -> jax.Array:
  """Causal self-attention of prompts, whose real tokens lie side by side.

  The kernel takes lengths, so padding on the right. What is on the left is turned to the right.

  Args:
    q: [P, S, Q, H] bfloat16.
    kv: keys [P, K, H, S] and values [P, K, S, H].
    mask: [P, S] bool, real tokens.
    window: how many tokens back each one sees, itself included; None sees all.

  Returns:
    [P, S, Q * H]; zeros where the mask is False.
  """

  def local(q, k, v, mask):
    first = jnp.argmax(mask, axis=1)[:, None]
    places = jnp.arange(mask.shape[1])
    turn = lambda x, by: jnp.take_along_axis(
      x, ((places + by) % mask.shape[1]).reshape(*mask.shape, 1, 1), axis=1
    )
    lengths = mask.sum(1, dtype=jnp.int32)
    out = jax.nn.dot_product_attention(
      *(turn(x, first) for x in (q, jnp.moveaxis(k, 3, 1), jnp.swapaxes(v, 1, 2))),
      is_causal=True,
      query_seq_lengths=lengths,
      key_value_seq_lengths=lengths,
      local_window_size=None if window is None else (window - 1, 0),
      implementation="cudnn",
    )
    out = jnp.where(mask[..., None, None], turn(out, -first), 0)
    return out.reshape(*mask.shape, -1)

  return on_own_heads(local, q, kv, jnp.asarray(mask))
