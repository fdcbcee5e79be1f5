"""Advantages and per-token losses: one function each, arrays in, arrays out.

The loss of a batch is `sum(token_weights * per_token_loss)`. The weights are made once for each
optimizer step and sum to 1, so micro-batches and devices only add, and no count is carried: the
gradient does not depend on how the batch was cut.

To add a loss: write a function with the signature of `grpo`, put its name into `LOSSES`, and
`--loss` takes it. Its keyword arguments are settings of the same names (`config.GRPOConfig`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from grpo_jax.types import Array

AdvantageScale = Literal["std", "none"]
Aggregation = Literal["sequence", "token", "constant"]

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


def has_spread(rewards: Array) -> jax.Array:
  """Which groups [P, G] have two different rewards, [P] bool: the others teach nothing."""
  return ~_spread(rewards)[2][:, 0]


def share_without_spread(rewards: Array) -> jax.Array:
  """The share of groups [P, G] whose rewards are all equal (float32 scalar)."""
  return jnp.mean(~has_spread(rewards), dtype=jnp.float32)


def _spread(rewards: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The differences [P, G] from each group's first reward, their std [P, 1] and if it is none."""
  rewards = jnp.asarray(rewards, jnp.float32)
  # The mean of equal rewards may be rounded to another value; a difference of equals is exactly 0.
  differences = rewards - rewards[:, :1]
  spread = differences.std(axis=1, keepdims=True)
  size = jnp.maximum(jnp.abs(rewards).max(axis=1, keepdims=True), 1.0)
  return differences, spread, spread < NO_SPREAD * size


def token_weights(
  mask: Array, aggregation: Aggregation = "sequence", *, max_tokens: int | None = None
) -> jax.Array:
  """How much each token's loss counts in the loss of an optimizer step.

      sequence    1 / (R |o_i|), R the rows with a token    GRPO (arXiv:2402.03300), eq. 3
      token       1 / sum_i |o_i|                            DAPO (arXiv:2503.14476), eq. 8
      constant    1 / (P G T)                                Dr. GRPO (arXiv:2503.20783)

  The first two sum to 1. Rows without a token get 0 and count nowhere (but in P G T).

  Args:
    mask: [P, G, T] bool, the tokens that are trained on, of all the prompts of an optimizer step.
    aggregation: one of the above.
    max_tokens: T of `constant`, the most tokens a completion may have; None takes the mask's.

  Returns:
    [P, G, T] float32, 0 outside the mask.

  Raises:
    ValueError: unknown `aggregation`.
  """
  chex.assert_rank(mask, 3)
  lengths = mask.sum(axis=-1, keepdims=True)
  if aggregation == "sequence":
    rows = jnp.maximum(jnp.sum(lengths > 0), 1).astype(jnp.float32)
    weight = 1.0 / (rows * jnp.maximum(lengths, 1).astype(jnp.float32))
  elif aggregation == "token":
    weight = 1.0 / jnp.maximum(lengths.sum(), 1).astype(jnp.float32)
  elif aggregation == "constant":
    weight = jnp.float32(1.0 / (mask.shape[0] * mask.shape[1] * (max_tokens or mask.shape[2])))
  else:
    raise ValueError(f"unknown aggregation {aggregation!r}; use one of {get_args(Aggregation)}")
  return jnp.where(mask, weight, 0.0)


def grpo(
  logp: Array,
  old_logp: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
) -> jax.Array:
  """The clipped objective of GRPO, negated, token by token.

      L_t = -min(w_t A, clip(w_t, 1 - clip_low, 1 + clip_high) A)
      w_t = pi(o_t | q, o_<t) / pi_old(o_t | q, o_<t)    DeepSeekMath (arXiv:2402.03300), eq. 3

  `clip_high > clip_low` is DAPO's clip-higher (arXiv:2503.14476).

  Args:
    logp: [P, G, T] float32, log-probs under the policy that is differentiated, in nats.
    old_logp: [P, G, T] float32, log-probs under the policy that sampled.
    advantages: [P, G] or [P, G, T] float32.
    mask: [P, G, T] bool, the tokens that are trained on.
    clip_low: how far the ratio may fall below 1.
    clip_high: how far it may rise above 1.

  Returns:
    [P, G, T] float32, finite outside the mask too.
  """
  ratio = jnp.exp(log_ratio(logp, old_logp, mask))
  advantages = per_token(advantages)
  clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  return -jnp.minimum(ratio * advantages, clipped * advantages)


def nll(logp: Array, old_logp: Array, advantages: Array, mask: Array) -> jax.Array:
  """The negative log-likelihood of demonstrations, token by token, in nats.

  Args:
    logp: [P, G, T] float32, log-probs under the policy that is differentiated, in nats.
    old_logp: not used: nobody sampled the demonstrations.
    advantages: not used: all of them are to be learned.
    mask: [P, G, T] bool, the tokens that are trained on.

  Returns:
    [P, G, T] float32, 0 outside the mask.
  """
  chex.assert_rank([logp, mask], 3)
  return -jnp.where(mask, logp, 0.0)


LOSSES: Mapping[str, Callable[..., jax.Array]] = {"grpo": grpo}


def log_ratio(logp: Array, old_logp: Array, mask: Array) -> jax.Array:
  """log(pi / pi_old) [P, G, T] float32 in nats; exactly 0, with a gradient of 0, outside the mask.

  Padding may hold anything: it is neutralised before any `exp`, so it cannot give NaN gradients.
  """
  chex.assert_rank([logp, old_logp, mask], 3)
  chex.assert_equal_shape([logp, old_logp, mask])
  return jnp.where(mask, logp - old_logp, 0.0)


def per_token(advantages: Array) -> Array:
  """Advantages [P, G] or [P, G, T] in a shape that broadcasts over tokens."""
  chex.assert_rank(advantages, {2, 3})
  return advantages[..., None] if advantages.ndim == 2 else advantages


def k3_divergence(logp: Array, ref_logp: Array, mask: Array) -> jax.Array:
  """Per-token estimate of KL(pi || pi_ref), unbiased and never negative, in nats.

      D = pi_ref / pi - log(pi_ref / pi) - 1        DeepSeekMath (arXiv:2402.03300), eq. 4

  Its gradient, unlike that of log(pi / pi_ref), does not vanish on average on-policy.

  Args:
    logp: [P, G, T] float32, log-probs under the policy.
    ref_logp: [P, G, T] float32, log-probs under the reference.
    mask: [P, G, T] bool.

  Returns:
    [P, G, T] float32, 0 outside the mask.
  """
  difference = log_ratio(ref_logp, logp, mask)
  return jnp.exp(difference) - difference - 1.0


def masked_mean(x: Array, mask: Array) -> jax.Array:
  """The mean of x [..] where the mask [..] is set; 0 where nothing is (float32 scalar)."""
  return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(mask.sum(), 1)


def loss_metrics(
  logp: Array,
  old_logp: Array,
  entropy: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
) -> dict[str, jax.Array]:
  """Diagnostics of an optimizer step under the names that the field knows them by (TRL's).

  Args:
    logp: [P, G, T] float32, log-probs under the policy before the step.
    old_logp: [P, G, T] float32, log-probs under the policy that sampled.
    entropy: [P, G, T] float32, of the next-token distributions, in nats.
    advantages: [P, G] or [P, G, T] float32.
    mask: [P, G, T] bool, the tokens that count.
    clip_low: as in the loss: a ratio below 1 - clip_low with A < 0 is held back.
    clip_high: a ratio above 1 + clip_high with A > 0 is held back.
  """
  difference = log_ratio(logp, old_logp, mask)
  ratio, moved, advantages = jnp.exp(difference), jnp.abs(difference), per_token(advantages)
  low = masked_mean((ratio < 1.0 - clip_low) & (advantages < 0), mask)
  high = masked_mean((ratio > 1.0 + clip_high) & (advantages > 0), mask)
  return {
    "entropy": masked_mean(entropy, mask),
    "clip_ratio/low_mean": low,
    "clip_ratio/high_mean": high,
    "clip_ratio/region_mean": low + high,
    "sampling/importance_sampling_ratio/min": jnp.min(jnp.where(mask, ratio, jnp.inf)),
    "sampling/importance_sampling_ratio/mean": masked_mean(ratio, mask),
    "sampling/importance_sampling_ratio/max": jnp.max(jnp.where(mask, ratio, -jnp.inf)),
    "sampling/sampling_logp_difference/mean": masked_mean(moved, mask),
    "sampling/sampling_logp_difference/max": jnp.max(moved),
  }


def nll_metrics(logp: Array, entropy: Array, mask: Array) -> dict[str, jax.Array]:
  """Diagnostics of an optimizer step on demonstrations.

  Args:
    logp: [P, G, T] float32, log-probs under the policy before the step, in nats.
    entropy: [P, G, T] float32, of the next-token distributions, in nats.
    mask: [P, G, T] bool, the tokens that count.

  Returns:
    `nll`, nats per token; `accuracy`, the share of tokens with a probability above one half, which
    are the likeliest for certain; and `entropy`.
  """
  return {
    "nll": masked_mean(-logp, mask),
    "accuracy": masked_mean(logp > jnp.log(0.5), mask),
    "entropy": masked_mean(entropy, mask),
  }
