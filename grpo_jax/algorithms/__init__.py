"""The algorithm's parts as small pure functions over arrays."""

from grpo_jax.algorithms.advantages import (
  AdvantageScale,
  group_advantages,
  share_without_spread,
)
from grpo_jax.algorithms.losses import (
  REDUCTIONS,
  Aggregation,
  LossSums,
  grpo_loss,
  k3_divergence,
  loss_count,
  loss_metrics,
)

__all__ = [
  "REDUCTIONS",
  "AdvantageScale",
  "Aggregation",
  "LossSums",
  "group_advantages",
  "grpo_loss",
  "k3_divergence",
  "loss_count",
  "loss_metrics",
  "share_without_spread",
]
