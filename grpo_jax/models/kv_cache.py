"""Key/value caches: one for the prompts (shared by each group) and one for the completions.

Shape legend: P prompts, G group, S prompt tokens, T completion tokens, K key/value heads, H head
width, N layers. Keys are stored after RoPE, and transposed: see `xla_cpu`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.models.config import DecoderConfig
from grpo_jax.types import Array


class LayerKV(NamedTuple):
  """One layer's keys and values.

  Attributes:
    k: [P, K, H, S] for prompts, [P, G, K, H, T] for completions; compute dtype.
    v: [P, K, S, H] and [P, G, K, T, H].
  """

  k: jax.Array
  v: jax.Array


def as_cached(k: jax.Array, v: jax.Array) -> LayerKV:
  """Lays keys and values of tokens, [.., L, K, H] each, out as they are cached."""
  return LayerKV(jnp.moveaxis(k, -3, -1), jnp.swapaxes(v, -3, -2))


class PromptCache(NamedTuple):
  """The prompts' keys and values, stored once per prompt and never G times.

  Attributes:
    layers: N entries.
    mask: [P, S] bool, True on real tokens.
    length: [P] int32, real tokens; also the position of the first completion token.
  """

  layers: tuple[LayerKV, ...]
  mask: Array
  length: jax.Array


CompletionCache = tuple[LayerKV, ...]
"""N entries; slots after the current token hold zeros and are masked."""


def empty_completion_cache(
  config: DecoderConfig, prompts: int, group: int, length: int
) -> CompletionCache:
  """Allocates the completions' cache.

  Args:
    config: gives N, K, H and the dtype.
    prompts: P.
    group: G.
    length: T, the most tokens that will be fed back.
  """
  shape = (prompts, group, length, config.num_kv_heads, config.head_dim)
  zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
  return tuple(as_cached(zeros, zeros) for _ in range(config.num_layers))
