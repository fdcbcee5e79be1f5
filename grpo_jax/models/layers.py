"""What the decoder's layers are made of: root-mean-square norm, linear with room for adapters."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

PRODUCT = "product"  # what rematerialisation may keep of a layer


class RMSNorm(nn.Module):
  """Root-mean-square norm over the last axis, in float32 (arXiv:1910.07467)."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Computes x [.., D] @ kernel [D, F] with the weight gradient as x^T g instead of (g^T x)^T.

  XLA on CPU copies the left side of that product into transposed order, fused with whatever made
  it. For a cotangent that is SwiGLU's whole backward arithmetic, five times slower so.
  """
  return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _project_backward(saved, g):
  x, kernel = saved
  leading = tuple(range(x.ndim - 1))
  dx = lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ())))
  return dx, lax.dot_general(x, g, ((leading, leading), ((), ())))


project.defvjp(lambda x, kernel: (project(x, kernel), (x, kernel)), _project_backward)


class Dense(nn.Dense):
  """A linear layer that adds (x A) B where its parameters hold adapters (see `models.lora`)."""

  dot_general: Any = lambda x, kernel, *_, **__: project(x, kernel)

  def __call__(self, x: jax.Array) -> jax.Array:
    y = super().__call__(x)
    if self.has_variable("params", "lora_a"):
      for name in ("lora_a", "lora_b"):
        x = project(x, self.get_variable("params", name).astype(y.dtype))
      y += x
    return checkpoint_name(y, PRODUCT)


def stored(x: jax.Array) -> jax.Array:
  """Returns x [.., H/2] through a product with the identity, which is exact.

  XLA on CPU fuses cosine and sine into every rotation and computes them again for each head of
  each layer, in both passes; through a product it never fuses. (Barriers are gone by then.)
  """
  return jnp.matmul(x, jnp.eye(x.shape[-1], dtype=x.dtype), precision=lax.Precision.HIGHEST)
