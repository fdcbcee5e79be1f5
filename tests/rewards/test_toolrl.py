"""ToolRL's formula against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest

from grpo_jax.rewards import score
from grpo_jax.tasks.schema import ToolTask


def execute(*calls: tuple[str, dict]) -> ToolTask:
  return ToolTask.from_row(
    {
      "prompt": "x",
      "reward_model": {"ground_truth": [{"name": n, "arguments": a} for n, a in calls]},
    }
  )


def text(*calls: tuple[str, dict]) -> str:
  return json.dumps([{"name": n, "arguments": a} for n, a in calls])


ONE = execute(("f", {"a": 1, "b": 2}))  # S_max = 1 + 1 + 2 = 4
TWO = execute(("f", {"a": 1}), ("f", {"a": 2}))  # S_max = 1 + 2 + 2 = 5


@pytest.mark.parametrize(
  ("task", "completion", "form", "correctness"),
  [
    (ONE, text(("f", {"a": 1, "b": 2})), 1, 3.0),
    (ONE, text(("f", {"a": 1, "b": 3})), 1, 6 * (1 + 1 + 1) / 4 - 3),
    (ONE, text(("f", {"a": 1})), 1, 6 * (1 + 1 / 2 + 1) / 4 - 3),
    (ONE, text(("f", {"a": 1, "b": 2, "c": 3})), 1, 6 * (1 + 2 / 3 + 2) / 4 - 3),
    (ONE, text(("g", {"a": 1, "b": 2})), 1, -3.0),
    (ONE, text(("f", {"a": 1, "b": 2}), ("g", {})), 1, 6 * (1 / 2 + 3) / 4 - 3),
    (ONE, text(("f", {"c": 1})), 1, 6 * 1 / 4 - 3),
    (ONE, "no call", 0, -3.0),
    (ONE, "", 0, -3.0),
    (TWO, text(("f", {"a": 2}), ("f", {"a": 1})), 1, 3.0),
    (TWO, text(("f", {"a": 1})), 1, 6 * (1 / 2 + 2) / 5 - 3),
    (TWO, text(("f", {"a": 1}), ("f", {"a": 1})), 1, 6 * (1 + 2 + 1) / 5 - 3),
  ],
)
def test_correctness_follows_the_paper(task, completion, form, correctness):
  found = score(completion, task, reward="toolrl")
  assert found.parts["toolrl/format"] == form
  assert found.parts["toolrl/correctness"] == pytest.approx(correctness)
  assert found.total == pytest.approx((form + correctness + 3) / 7)


def test_a_needless_call_costs_nothing():
  task = ToolTask.from_row({"prompt": "x", "reward_model": {"ground_truth": "Which city?"}})
  right = score("Which city?", task, reward="toolrl")
  needless = score(text(("f", {})), task, reward="toolrl")
  assert right.total == needless.total == pytest.approx(4 / 7)
  assert (right.error, needless.error) == (None, "needless_call")
  assert score(" ", task, reward="toolrl").total == pytest.approx(3 / 7)
