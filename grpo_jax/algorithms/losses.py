"""The clipped policy loss and its diagnostics, as sums and counts.

Nothing here takes a mean: a micro-batch returns what it adds to the numerator and to the
denominator, the update adds these up and divides once. So the loss and its gradient do not depend
on how a batch was cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from grpo_jax.types import Array

Aggregation = Literal["sequence", "token"]


class LossSums(NamedTuple):
  """What some completions add to the loss and to the diagnostics.

  Attributes:
    total: float32 scalar, numerator of the loss (nats times advantage).
    count: float32 scalar, its denominator: sequences or tokens. The loss is total / count.
    sums: diagnostics to be added up and divided by `sums["tokens"]`.
    lows: diagnostics of which the minimum counts.
    highs: diagnostics of which the maximum counts.
  """

  total: jax.Array
  count: jax.Array  # type: ignore[assignment]  # a tuple has a method of this name
  sums: dict[str, jax.Array]
  lows: dict[str, jax.Array]
  highs: dict[str, jax.Array]

  @classmethod
  def nothing(cls, like: LossSums) -> LossSums:
    """What no completions add, in the shapes of `like`."""
    fill = lambda value, tree: jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), tree)
    total, count, sums = fill(0.0, (like.total, like.count, like.sums))
    return cls(total, count, sums, fill(jnp.inf, like.lows), fill(-jnp.inf, like.highs))

  def __add__(self, other: LossSums) -> LossSums:  # type: ignore[override]
    """Puts two micro-batches together."""
    return LossSums(
      self.total + other.total,
      self.count + other.count,
      jax.tree.map(jnp.add, self.sums, other.sums),
      jax.tree.map(jnp.minimum, self.lows, other.lows),
      jax.tree.map(jnp.maximum, self.highs, other.highs),
    )


def k3_divergence(logp: Array, ref_logp: Array) -> jax.Array:
  """Per-token estimate of KL(pi || pi_ref), unbiased and never negative, in nats.

      D = pi_ref / pi - log(pi_ref / pi) - 1        DeepSeekMath (arXiv:2402.03300), eq. 4

  Its gradient, unlike that of log(pi / pi_ref), does not vanish on average on-policy.

  Args:
    logp: [..] float32 log-probs under the policy.
    ref_logp: [..] float32 log-probs under the reference.
  """
  difference = ref_logp - logp
  return jnp.exp(difference) - difference - 1.0


def grpo_loss(
  logp: Array,
  old_logp: Array,
  advantages: Array,
  mask: Array,
  *,
  ref_logp: Array | None = None,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  kl_weight: float = 0.0,
  aggregation: Aggregation = "sequence",
) -> LossSums:
  """The GRPO objective, negated.

      J = mean_i 1/|o_i| sum_t [ min(w A, clip(w, 1 - low, 1 + high) A) - beta D(pi || pi_ref) ]
      w = pi(o_t | q, o_<t) / pi_old(o_t | q, o_<t)    DeepSeekMath (arXiv:2402.03300), eq. 3

  `aggregation="token"` weighs every token of the batch alike instead (DAPO, arXiv:2503.14476);
  `clip_high > clip_low` is DAPO's clip-higher.

  Args:
    logp: [P, G, T] float32, log-probs under the policy that is differentiated.
    old_logp: [P, G, T] float32, log-probs under the policy that sampled.
    advantages: [P, G] float32.
    mask: [P, G, T] bool, sampled tokens (the stop token among them).
    ref_logp: [P, G, T] float32, log-probs under the reference; needed when `kl_weight` is not 0.
    clip_low: how far the ratio may fall below 1.
    clip_high: how far it may rise above 1.
    kl_weight: beta, in reward per nat.
    aggregation: `sequence` (the paper) or `token`.

  Returns:
    `LossSums`; the loss to minimise is `total / count`.

  Raises:
    ValueError: unknown `aggregation`, or a KL weight without reference log-probs.
  """
  chex.assert_rank([logp, old_logp, mask, advantages], [3, 3, 3, 2])
  chex.assert_equal_shape([logp, old_logp, mask])
  if aggregation not in get_args(Aggregation):
    raise ValueError(f"unknown aggregation {aggregation!r}; use one of {get_args(Aggregation)}")
  if kl_weight and ref_logp is None:
    raise ValueError("kl_weight is not 0, so ref_logp is needed")

  # Padding may hold anything: it is neutralised before exp, so that it cannot give NaN gradients.
  difference = jnp.where(mask, logp - old_logp, 0.0)
  ratio = jnp.exp(difference)
  advantage = advantages[..., None]
  clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  loss = -jnp.minimum(ratio * advantage, clipped * advantage)
  sums: dict[str, jax.Array] = {}
  if ref_logp is not None:
    divergence = k3_divergence(jnp.where(mask, logp, 0.0), jnp.where(mask, ref_logp, 0.0))
    loss = loss + kl_weight * divergence
    sums["kl"] = _over(mask, divergence)

  if aggregation == "sequence":
    total = jnp.sum(_over(mask, loss, axis=-1) / jnp.maximum(mask.sum(-1), 1))
  else:
    total = _over(mask, loss)

  moved = jnp.abs(difference)
  low = (ratio < 1.0 - clip_low) & (advantage < 0)  # where the clip holds the gradient back
  high = (ratio > 1.0 + clip_high) & (advantage > 0)
  sums |= {
    "tokens": jnp.sum(mask).astype(jnp.float32),
    "clip_low": _over(mask, low),
    "clip_high": _over(mask, high),
    "ratio": _over(mask, ratio),
    "logp_difference": _over(mask, moved),
  }
  lows = {"ratio": jnp.min(jnp.where(mask, ratio, jnp.inf))}
  highs = {
    "ratio": jnp.max(jnp.where(mask, ratio, -jnp.inf)),
    "logp_difference": jnp.max(jnp.where(mask, moved, 0.0)),
  }
  frozen = lambda tree: jax.lax.stop_gradient(tree)
  count = loss_count(mask, aggregation)
  return LossSums(total, count, frozen(sums), frozen(lows), frozen(highs))


def loss_count(mask: Array, aggregation: Aggregation) -> jax.Array:
  """The loss's denominator: sequences, or tokens, of mask [P, G, T] bool; float32 scalar."""
  lengths = mask.sum(-1)
  return jnp.sum(lengths > 0 if aggregation == "sequence" else lengths).astype(jnp.float32)


def _over(mask: Array, x: Array, axis: int | None = None) -> jax.Array:
  return jnp.sum(jnp.where(mask, x, 0.0), axis=axis)


# How metrics of several optimizer steps become one; the mean, where nothing else is said.
REDUCTIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  "skipped_updates": jnp.sum,
  "sampling/importance_sampling_ratio/min": jnp.min,
  "sampling/importance_sampling_ratio/max": jnp.max,
  "sampling/sampling_logp_difference/max": jnp.max,
}


def loss_metrics(sums: LossSums) -> dict[str, jax.Array]:
  """The loss and the diagnostics under the names that the field knows them by (TRL's).

  `sums.count` must be positive.
  """
  tokens = jnp.maximum(sums.sums["tokens"], 1.0)
  low, high = sums.sums["clip_low"] / tokens, sums.sums["clip_high"] / tokens
  metrics = {
    "loss": sums.total / sums.count,
    "entropy": sums.sums["entropy"] / tokens,
    "clip_ratio/low_mean": low,
    "clip_ratio/high_mean": high,
    "clip_ratio/region_mean": low + high,
    "sampling/importance_sampling_ratio/min": sums.lows["ratio"],
    "sampling/importance_sampling_ratio/mean": sums.sums["ratio"] / tokens,
    "sampling/importance_sampling_ratio/max": sums.highs["ratio"],
    "sampling/sampling_logp_difference/mean": sums.sums["logp_difference"] / tokens,
    "sampling/sampling_logp_difference/max": sums.highs["logp_difference"],
  }
  if "kl" in sums.sums:
    metrics["kl"] = sums.sums["kl"] / tokens
  return metrics
