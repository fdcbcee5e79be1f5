"""One token of each candidate: filters of the logits, and the inverse of their distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from grpo_jax.config import SamplingConfig

CDF_BLOCK = 128


def draw(
  logits: jax.Array, uniform: jax.Array, cfg: SamplingConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws one token a row by inverting the cumulative distribution at one uniform number.

  One number a row replaces the V Gumbel variates of the usual trick.

  Args:
    logits: [.., V] float32.
    uniform: [..] float32 in [0, 1).
    cfg: temperature and filters.

  Returns:
    The tokens [..] int32, their log-probs under the policy at this temperature and under the
    distribution that was sampled from (filtered, too), [..] float32 in nats.
  """
  logits = logits / (cfg.temperature or 1.0)
  unfiltered = jax.nn.log_softmax(logits, axis=-1)
  pick = lambda table, token: jnp.take_along_axis(table, token[..., None], axis=-1)[..., 0]
  if cfg.temperature == 0:
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token, pick(unfiltered, token), jnp.zeros_like(uniform)
  sampled = jax.nn.log_softmax(filtered_logits(logits, cfg), axis=-1)
  token = invert_cdf(jnp.exp(sampled), uniform)
  return token, pick(unfiltered, token), pick(sampled, token)


def filtered_logits(logits: jax.Array, cfg: SamplingConfig) -> jax.Array:
  """Sets the logits [.., V] of tokens that top-k, top-p or min-p exclude to minus infinity.

  Filters apply in that order, each to what the one before it left (as transformers does).
  """
  if 0 < cfg.top_k < logits.shape[-1]:
    logits = _cut(logits, lax.top_k(logits, cfg.top_k)[0], True)
  if cfg.top_p < 1:
    ordered = jnp.sort(logits, axis=-1)[..., ::-1]
    chance = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(chance, axis=-1) - chance  # a token stays while those above it fall short
    logits = _cut(logits, ordered, before < cfg.top_p)
  if cfg.min_p > 0:
    floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(cfg.min_p)
    logits = jnp.where(logits < floor, -jnp.inf, logits)
  return logits


def _cut(logits: jax.Array, likeliest: jax.Array, stays: jax.Array | bool) -> jax.Array:
  """Leaves as many of the logits [.., V] as of the `likeliest` [.., K] stay, and those.

  Of tokens with the weakest logit that stays, the lowest ids are left: logits that were computed in
  bfloat16 are often equal, and all of them would be more than were asked for.
  """
  weakest = jnp.min(jnp.where(stays, likeliest, jnp.inf), axis=-1, keepdims=True)
  room = jnp.sum(stays & (likeliest == weakest), axis=-1, keepdims=True)
  tied = logits == weakest
  beyond = tied & (jnp.cumsum(tied, axis=-1) > room)
  return jnp.where((logits < weakest) | beyond, -jnp.inf, logits)


def invert_cdf(chance: jax.Array, uniform: jax.Array) -> jax.Array:
  """The token at which the cumulative probability first exceeds `uniform`.

  Two levels, blocks and then tokens of one block, so that no running sum over V is needed.

  Args:
    chance: [.., V] float32, not negative, of sum about 1.
    uniform: [..] float32 in [0, 1).

  Returns:
    [..] int32, always a token with a positive chance.
  """
  vocab = chance.shape[-1]
  pad = -vocab % CDF_BLOCK
  chance = jnp.pad(chance, [(0, 0)] * (chance.ndim - 1) + [(0, pad)])
  blocks = chance.reshape(*chance.shape[:-1], -1, CDF_BLOCK)
  mass = blocks.sum(-1)
  edge = jnp.cumsum(mass, axis=-1)
  target = (uniform * edge[..., -1])[..., None]
  block = _first_above(edge, mass, target)
  below = jnp.take_along_axis(edge - mass, block[..., None], axis=-1)
  inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
  token = _first_above(jnp.cumsum(inside, axis=-1), inside, target - below)
  return (block * CDF_BLOCK + token).astype(jnp.int32)


def _first_above(edges: jax.Array, mass: jax.Array, target: jax.Array) -> jax.Array:
  """First index with mass whose running sum exceeds the target, or else the last one with mass.

  A parallel running sum can rise by rounding where there is no mass, so the edges alone do not say.
  """
  above = (edges > target) & (mass > 0)
  last = mass.shape[-1] - 1 - jnp.argmax((mass > 0)[..., ::-1], axis=-1)
  return jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), last)
