"""Accuracies by category, and their means as the Berkeley leaderboard takes them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.report.scores import compare, gain_of, interval95, stratified_mean
from grpo_jax.report.tables import Row, interval_text, mean_text
from grpo_jax.tasks.bfcl import IRRELEVANCE, LIVE, NON_LIVE

Rows = Sequence[Mapping[str, Any]]  # of `evaluate`, one sample a task


class Mean(NamedTuple):
  """A mean over categories.

  Attributes:
    categories: all of them are needed.
    weighted: by the number of tasks that the data hold of each, else all alike.
  """

  categories: tuple[str, ...]
  weighted: bool


# "Non-live" has Java and JavaScript beside Python on the leaderboard, in the first of four parts.
MEANS: Mapping[str, Mean] = {
  "non-live AST, mean of 4": Mean(NON_LIVE, weighted=False),
  "live AST, weighted by tasks": Mean(LIVE, weighted=True),
  "irrelevance, mean of 2": Mean(IRRELEVANCE, weighted=False),
}


def overall_means(
  rows: Mapping[str, Rows], sizes: Mapping[str, int], seed: int
) -> dict[str, dict[str, Any]]:
  """The means of `MEANS` whose categories were all evaluated.

  Args:
    rows: by category.
    sizes: tasks that the data hold of each category, of which a sample may have been evaluated.
    seed: of the bootstrap, which resamples each category by itself.

  Returns:
    By name `mean`, `ci95` and `n`.
  """
  found = {}
  for name, mean in _complete(rows):
    rewards = [_rewards(rows[category]) for category in mean.categories]
    value, values = stratified_mean(rewards, _weights(mean, sizes), seed)
    n = sum(map(len, rewards))
    found[name] = {"mean": float(value), "ci95": interval95(values), "n": n}
  return found


def compare_leaderboards(
  before: Mapping[str, Rows], after: Mapping[str, Rows], sizes: Mapping[str, int], seed: int
) -> dict[str, dict[str, Any]]:
  """Compares two evaluations task by task, in the categories and means that both have.

  Args:
    before: rows by category.
    after: the same, of the same tasks.
    sizes: tasks that the data hold of each category.
    seed: of the bootstrap.

  Returns:
    By category or mean what `scores.compare` says.

  Raises:
    ValueError: no category in common, or other tasks.
  """
  common = {category: rows for category, rows in after.items() if category in before}
  if not common:
    raise ValueError(f"the two evaluations have no category in common: {', '.join(before)}")
  found = {name: compare(before[name], rows, seed=seed) for name, rows in common.items()}
  for name, mean in _complete(common):
    pairs = [
      np.stack([_rewards(before[category]), _rewards(common[category])], axis=1)
      for category in mean.categories
    ]
    gain = gain_of(*stratified_mean(pairs, _weights(mean, sizes), seed))
    found[name] = {"n": sum(map(len, pairs)), **gain}
  return found


def accuracy_rows(found: Mapping[str, Mapping[str, Any]]) -> tuple[Row, list[Row]]:
  """The header and rows of a table: tasks and accuracy of each category or mean."""
  rows: list[Row] = [(name, str(one["n"]), mean_text(one)) for name, one in found.items()]
  return ("category", "tasks", "accuracy [95% interval]"), rows


def accuracy_gain_rows(found: Mapping[str, Mapping[str, Any]]) -> tuple[Row, list[Row]]:
  """The header and rows of a comparison's table."""
  rows: list[Row] = [
    (name, str(one["n"]), f"{one['base_mean']:.3f}", f"{one['final_mean']:.3f}",
     interval_text(one, "difference", "+.3f"))
    for name, one in found.items()
  ]  # fmt: skip
  return ("category", "tasks", "before", "after", "difference [95%]"), rows


def _complete(rows: Mapping[str, Rows]) -> list[tuple[str, Mean]]:
  return [(name, mean) for name, mean in MEANS.items() if set(mean.categories) <= rows.keys()]


def _weights(mean: Mean, sizes: Mapping[str, int]) -> list[float]:
  return [sizes[category] if mean.weighted else 1 for category in mean.categories]


def _rewards(rows: Rows) -> np.ndarray:
  return np.array([row["reward"] for row in rows], np.float64)
