"""Means, intervals, counts of mistakes and paired comparison, against numbers worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from grpo_jax.report import scores
from grpo_jax.report.scores import bootstrap_means, compare, interval95, summarize
from grpo_jax.rewards import RewardBreakdown, score
from grpo_jax.tasks.schema import ToolTask

TOOL = {
  "name": "get_time",
  "parameters": {
    "type": "object",
    "properties": {"city": {"type": "string"}, "zone": {"type": "string"}},
    "required": ["city"],
  },
}
RIGHT = '[{"name": "get_time", "arguments": {"city": "Oslo"}}]'


def make_task(behavior: str, tool: str = "get_time") -> ToolTask:
  truth = {"execute": RIGHT, "clarify": "Which city?", "refuse": "Sorry, I cannot do that."}
  return ToolTask.from_row(
    {
      "prompt": "What time is it?",
      "tools": [TOOL],
      "reward_model": {"ground_truth": truth[behavior]},
      "extra_info": {"behavior": behavior, "tool": tool, "missing": ["city"]},
    }
  )


TASKS = [make_task("execute"), make_task("execute", "other"), make_task("clarify")]
# Scored by the real reward: exact, wrong argument (0.5), a needless call (0).
COMPLETIONS = [RIGHT, RIGHT.replace("Oslo", "Rome"), RIGHT]


def scored() -> list[list[RewardBreakdown]]:
  return [[score(c, task)] for c, task in zip(COMPLETIONS, TASKS, strict=True)]


def test_summary_counts_what_the_reward_found():
  found = summarize(TASKS, scored(), seed=0)
  assert found["n"] == 3 and found["samples"] == 1
  assert found["reward_mean"] == pytest.approx(0.5)
  assert found["by_behavior"]["execute"] == {"mean": 0.75, "ci95": [0.5, 1.0], "n": 2}
  assert found["by_behavior"]["clarify"] == {"mean": 0.0, "ci95": [0.0, 0.0], "n": 1}
  assert list(found["by_behavior"]) == ["execute", "clarify"]
  assert found["by_tool"]["other"]["mean"] == 0.5
  assert found["by_tool"]["get_time"]["n"] == 2
  assert found["confusion"]["execute"] == {"execute": 2, "clarify": 0, "refuse": 0, "other": 0}
  assert found["confusion"]["clarify"]["execute"] == 1
  assert found["error_rates"] == pytest.approx({"needless_call": 1 / 3, "wrong_argument": 1 / 3})
  assert found["wrong_arguments"] == {"other": {"city": 1.0}}
  assert json.loads(json.dumps(found)) == found


def test_samples_of_a_task_are_one_unit_of_the_bootstrap():
  # Two tasks, each certain: the interval is of the tasks, however many samples each has.
  groups = [[RewardBreakdown(1.0)] * 8, [RewardBreakdown(0.0, "no_call")] * 8]
  found = summarize(TASKS[:2], groups, seed=0)
  assert found["reward_ci95"] == [0.0, 1.0]
  assert found["error_rates"] == {"no_call": 0.5}
  # The same spread inside the tasks instead: their means are equal, so the interval is a point.
  mixed = [[RewardBreakdown(1.0)] * 4 + [RewardBreakdown(0.0)] * 4] * 2
  assert summarize(TASKS[:2], mixed, seed=0)["reward_ci95"] == [0.5, 0.5]


def test_interval_is_that_of_the_normal_law_for_many_values():
  values = np.random.default_rng(1).random(2000)
  low, high = interval95(bootstrap_means(values, 0, 4000))
  half = 1.96 * values.std() / np.sqrt(len(values))
  assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_is_a_function_of_the_seed():
  values = np.random.default_rng(1).random(50)
  first = bootstrap_means(values, 7, 100)
  assert first.shape == (100,)
  assert np.array_equal(first, bootstrap_means(values, 7, 100))
  assert not np.array_equal(first, bootstrap_means(values, 8, 100))


def test_bootstrap_draws_the_same_in_small_pieces(monkeypatch):
  values = np.random.default_rng(1).random(50)
  whole = bootstrap_means(values, 7, 100)
  monkeypatch.setattr(scores, "MAX_DRAWS_AT_ONCE", 1000)
  assert np.array_equal(whole, bootstrap_means(values, 7, 100))


@pytest.mark.parametrize(
  ("tasks", "breakdowns"),
  [
    ([], []),
    (TASKS, scored()[:2]),
    (TASKS[:1], [[]]),
    (TASKS[:2], [[RewardBreakdown(1.0)], [RewardBreakdown(1.0)] * 2]),
  ],
)
def test_summary_refuses_what_it_cannot_average(tasks, breakdowns):
  with pytest.raises(ValueError, match="equally many samples"):
    summarize(tasks, breakdowns, seed=0)


def make_rows(rewards: list[float], samples: int = 1) -> list[dict]:
  return [
    {
      "index": i,
      "sample": sample,
      "id": f"t{i}",
      "request": "?",
      "wanted": "execute" if i % 2 else "refuse",
      "reward": reward,
    }
    for i, reward in enumerate(rewards)
    for sample in range(samples)
  ]


def test_comparison_pairs_the_tasks():
  base = [0.0, 0.5, 0.25, 0.75] * 25
  found = compare(make_rows(base), make_rows([r + 0.25 for r in base], samples=3), seed=0)
  assert found["n"] == 100
  assert (found["base_mean"], found["final_mean"]) == pytest.approx((0.375, 0.625))
  # Every task gains the same, so a paired difference has no spread; unpaired it would have some.
  assert found["difference_ci95"] == pytest.approx([0.25, 0.25])
  assert found["relative_gain"] == pytest.approx(2 / 3)
  low, high = found["relative_gain_ci95"]
  assert low < 2 / 3 < high
  by_behavior = found["by_behavior"]
  assert by_behavior["refuse"]["base_mean"] == pytest.approx(0.125)
  assert by_behavior["execute"]["relative_gain"] == pytest.approx(0.4)
  assert "clarify" not in by_behavior


def test_comparison_pairs_by_task_and_not_by_line():
  base, final = make_rows([0.0, 0.5, 1.0]), make_rows([0.25, 0.75, 1.25])
  assert compare(base, final[::-1], seed=0) == compare(base, final, seed=0)


def test_relative_gain_needs_a_base_above_zero():
  found = compare(make_rows([0.0, 0.0]), make_rows([1.0, 0.0]), seed=0)
  assert found["difference"] == 0.5
  assert found["relative_gain"] is None and found["relative_gain_ci95"] is None


def test_comparison_refuses_other_tasks():
  rows = make_rows([0.0, 1.0])
  with pytest.raises(ValueError, match="same tasks"):
    compare(rows, rows[:1], seed=0)
  with pytest.raises(ValueError, match="same tasks"):
    compare(rows, [dict(row, id="x") for row in rows], seed=0)
  with pytest.raises(ValueError, match="same tasks"):
    compare([], [], seed=0)
