"""Means over categories and their intervals, against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from grpo_jax.report.leaderboard import (
  accuracy_gain_rows,
  accuracy_rows,
  compare_leaderboards,
  overall_means,
)
from grpo_jax.report.scores import bootstrap_means, compare, interval95, stratified_mean
from grpo_jax.tasks.bfcl import IRRELEVANCE, LIVE, NON_LIVE

SIZES = {**dict.fromkeys(NON_LIVE, 200), **dict(zip(LIVE, (258, 1053, 16, 24), strict=True))}


def rows_of(names, *rewards: list[float]) -> dict[str, list[dict]]:
  return {
    name: [
      {"index": i, "id": f"{name}_{i}", "wanted": "execute", "reward": reward}
      for i, reward in enumerate(each)
    ]
    for name, each in zip(names, rewards, strict=True)
  }


NON_LIVE_ROWS = rows_of(NON_LIVE, [1, 1], [1, 0, 0, 0], [0, 0], [1, 0])
LIVE_ROWS = rows_of(LIVE, [1, 1], [1, 0], [0, 0], [0, 0])


def test_non_live_counts_categories_alike_and_live_counts_their_tasks_in_the_data():
  found = overall_means(NON_LIVE_ROWS | LIVE_ROWS, SIZES, seed=0)
  non_live, live = found["non-live AST, mean of 4"], found["live AST, weighted by tasks"]
  assert non_live["mean"] == pytest.approx((1 + 0.25 + 0 + 0.5) / 4)
  assert live["mean"] == pytest.approx((258 + 1053 / 2) / (258 + 1053 + 16 + 24))
  assert (non_live["n"], live["n"], len(found)) == (10, 8, 2)
  # Only live_multiple varies: its mean is 0, 1/2 or 1, and the others' are what they are.
  share = 1053 / 1351
  assert live["ci95"] == pytest.approx([258 / 1351, 258 / 1351 + share])


def test_a_mean_needs_all_of_its_categories():
  some = {name: rows for name, rows in NON_LIVE_ROWS.items() if name != "parallel"}
  assert overall_means(some, SIZES, seed=0) == {}
  with_irrelevance = some | rows_of(IRRELEVANCE, [1, 1], [0, 0])
  found = overall_means(with_irrelevance, SIZES, seed=0)
  assert found == {"irrelevance, mean of 2": {"mean": 0.5, "ci95": [0.5, 0.5], "n": 4}}


def test_strata_are_resampled_each_by_itself():
  half = np.repeat([0.0, 1.0], 50)
  mean, means = stratified_mean([half, half], [3, 1], seed=0, resamples=4000)
  assert mean == 0.5
  # Weights 3/4 and 1/4 of independent means, each of variance 1/400. Alike, it would be 1/400.
  assert means.var() == pytest.approx((9 + 1) / 16 / 400, rel=0.1)
  alone, resampled = stratified_mean([half], [7], seed=3)
  assert alone == 0.5 and np.array_equal(resampled, bootstrap_means(half, (3, 0), 2000))


def test_two_evaluations_are_compared_in_what_both_have():
  better = {
    name: [{**row, "reward": 1} for row in rows] for name, rows in NON_LIVE_ROWS.items()
  } | LIVE_ROWS
  found = compare_leaderboards(NON_LIVE_ROWS, better, SIZES, seed=0)
  assert list(found) == [*NON_LIVE, "non-live AST, mean of 4"]
  assert found["multiple"] == compare(NON_LIVE_ROWS["multiple"], better["multiple"], seed=0)
  mean = found["non-live AST, mean of 4"]
  assert (mean["n"], mean["base_mean"], mean["final_mean"]) == (10, 0.4375, 1.0)
  assert mean["difference"] == 0.5625
  low, high = mean["difference_ci95"]
  # One of the four means cannot change, and two vary.
  assert 0.25 <= low < 0.5625 < high <= 0.75

  same = compare_leaderboards(NON_LIVE_ROWS, NON_LIVE_ROWS, SIZES, seed=0)
  assert {tuple(one["difference_ci95"]) for one in same.values()} == {(0.0, 0.0)}

  with pytest.raises(ValueError, match="no category in common"):
    compare_leaderboards(NON_LIVE_ROWS, LIVE_ROWS, SIZES, seed=0)
  others = rows_of(NON_LIVE[:1], [1, 1, 1])
  with pytest.raises(ValueError, match="not of the same tasks"):
    compare_leaderboards(NON_LIVE_ROWS, others, SIZES, seed=0)


def test_tables_name_tasks_and_intervals():
  header, rows = accuracy_rows({"multiple": {"mean": 0.25, "ci95": [0.0, 0.75], "n": 4}})
  assert header[0] == "category" and rows == [("multiple", "4", "0.250 [0.000, 0.750]")]
  found = compare_leaderboards(NON_LIVE_ROWS, NON_LIVE_ROWS, SIZES, seed=0)
  assert accuracy_gain_rows(found)[1][1] == (
    "multiple", "4", "0.250", "0.250", "+0.000 [+0.000, +0.000]"
  )  # fmt: skip
  assert interval95(np.array([0.0, 1.0])) == pytest.approx([0.025, 0.975])
