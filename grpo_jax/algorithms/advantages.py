"""Group-relative advantages."""

from __future__ import annotations

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from grpo_jax.types import Array

AdvantageScale = Literal["std", "none"]

# Rewards that are equal on paper can differ by float noise: a spread below this is none at all. It
# counts relative to the group's largest reward, about eight steps of float32 there, or to 1 where
# that is smaller: 0.1 + 0.2 - 0.3 is as noisy as the parts that it was made of.
NO_SPREAD = 1e-6


def group_advantages(
  rewards: Array, *, scale: AdvantageScale = "std", epsilon: float = 1e-4
) -> jax.Array:
  """Compares each candidate with the mean of its own group.

      A_i = (r_i - mean(r)) / (std(r) + epsilon)    DeepSeekMath (arXiv:2402.03300), section 4.1.2

  The paper leaves the details open: the standard deviation here is the population's (ddof 0),
  `epsilon` is added to it, and a group without spread gets exactly zero. `scale="none"` leaves the
  division out (Dr. GRPO, arXiv:2503.20783).

  Args:
    rewards: [P, G] float, one reward a candidate.
    scale: `std` or `none`.
    epsilon: in units of reward.

  Returns:
    [P, G] float32.

  Raises:
    ValueError: unknown `scale`.
  """
  chex.assert_rank(rewards, 2)
  if scale not in get_args(AdvantageScale):
    raise ValueError(f"unknown advantage scale {scale!r}; use one of {get_args(AdvantageScale)}")
  differences, spread, none = _spread(rewards)
  centred = differences - differences.mean(axis=1, keepdims=True)
  advantages = centred / (spread + epsilon) if scale == "std" else centred
  return jnp.where(none, 0.0, advantages)


def share_without_spread(rewards: Array) -> jax.Array:
  """The share of groups [P, G] whose rewards are all equal: they teach nothing (float32 scalar)."""
  return jnp.mean(_spread(rewards)[2].astype(jnp.float32))


def _spread(rewards: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The differences [P, G] from each group's first reward, their std [P, 1] and if it is none."""
  rewards = jnp.asarray(rewards, jnp.float32)
  # The mean of equal rewards may be rounded to another value; a difference of equals is exactly 0.
  differences = rewards - rewards[:, :1]
  spread = differences.std(axis=1, keepdims=True)
  size = jnp.maximum(jnp.abs(rewards).max(axis=1, keepdims=True), 1.0)
  return differences, spread, spread < NO_SPREAD * size
