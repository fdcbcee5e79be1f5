"""What the decoder's layers are made of: root-mean-square norm, linear with room for adapters.

Modules have the shapes of the parameters that they are applied to; `parameters.py` declares them.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from grpo_jax.models.xla_cpu import kept, project


class RMSNorm(nn.Module):
  """Root-mean-square norm over the last axis, in float32 (arXiv:1910.07467).

  Attributes:
    eps: added to the mean square.
    offset: added to the scale.
  """

  eps: float
  offset: float = 0.0

  def __call__(self, x: jax.Array) -> jax.Array:
    scale: jax.Array = self.get_variable("params", "scale")
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
    return (wide * (scale.astype(jnp.float32) + self.offset)).astype(x.dtype)


class Dense(nn.Module):
  """x W + b, and (x A) B where its parameters hold adapters (see `models.lora`), in x's dtype."""

  def __call__(self, x: jax.Array) -> jax.Array:
    weights = {name: w.astype(x.dtype) for name, w in self.variables["params"].items()}
    y = project(x, weights["kernel"])
    if "bias" in weights:
      y += weights["bias"]
    if "lora_a" in weights:
      y += project(project(x, weights["lora_a"]), weights["lora_b"])
    return kept(y)
