"""The prompts' attention by a kernel of the TPU: Pallas splash attention, no score leaves the chip.

It takes the place of `blockwise.attend_prompt` where a program is compiled for a TPU. Tests compare
it with the reference in Pallas' interpreter and compile it for TPUs; no TPU has run it here. The
completions see two sets of keys, which it does not know, and stay with `blockwise`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grpo_jax.models.kv_cache import LayerKV
from grpo_jax.models.placement import heads_divide, on_own_heads
from grpo_jax.types import Array

LANES = 128  # the kernel's heads come in multiples of this width,
BLOCK = 512  # and its sequences in such blocks


def suits(q: jax.Array, kv: LayerKV) -> bool:
  """Whether the kernel takes these shapes, whole or split as the mesh splits prompts and heads."""
  _, length, _, width = q.shape
  return heads_divide(q, kv) and not (width % LANES or length % BLOCK)


def attend_prompt(
  q: jax.Array,
  kv: LayerKV,
  mask: Array,
  *,
  window: int | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Causal self-attention of prompts whose shapes suit the kernel.

  Args:
    q: [P, S, Q, H].
    kv: keys [P, K, H, S] and values [P, K, S, H].
    mask: [P, S] bool, real tokens.
    window: how many tokens back each one sees, itself included; None sees all.
    interpret: run in Pallas' interpreter, on any device.

  Returns:
    [P, S, Q * H].
  """
  # Not with every start of the program: few of them need it.
  from jax.experimental.pallas.ops.tpu import splash_attention

  def local(q, k, v, mask):
    prompts, length, heads, width = q.shape
    shape = (length, length)
    seen: splash_attention.Mask = splash_attention.CausalMask(shape)
    if window is not None:
      seen = splash_attention.LocalMask(shape, (window - 1, 0), offset=0)
    kernel = splash_attention.make_splash_mha(
      splash_attention.MultiHeadMask([seen] * heads),
      block_sizes=splash_attention.BlockSizes(
        BLOCK, BLOCK, BLOCK, BLOCK, BLOCK, BLOCK, BLOCK, BLOCK
      ),
      head_shards=1,
      q_seq_shards=1,
      interpret=interpret,
    )
    # Tokens see their own kind only: real ones the real ones, padding the padding.
    one = lambda q, k, v, kind: kernel(q, k, v, splash_attention.SegmentIds(kind, kind))
    q = (q * width**-0.5).swapaxes(1, 2)
    out = jax.vmap(one)(q, k.swapaxes(2, 3), v, mask.astype(jnp.int32))
    return out.swapaxes(1, 2).reshape(prompts, length, heads * width)

  return on_own_heads(local, q, kv, mask)
