"""Accepted values against recorded verdicts of the leaderboard's own checker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_jax.rewards import score
from grpo_jax.rewards.matching.possible_answers import is_accepted
from grpo_jax.tasks.schema import ToolTask

CASES = Path(__file__).parent / "bfcl_cases.jsonl"


def test_verdicts_agree_with_the_leaderboard():
  checked = 0
  for line in CASES.read_text().splitlines():
    record = json.loads(line)
    task = ToolTask.from_row(record["row"])
    for completion, verdict in record["cases"]:
      ours = score(completion, task)
      assert (ours.total == 1.0) == verdict, (record["id"], completion, ours)
      checked += 1
  assert checked > 1000


@pytest.mark.parametrize(
  ("value", "accepted", "schema", "same"),
  [
    ("April 1, 2024", ["april 1 2024"], {"type": "string"}, True),
    ("it's", ['it"s'], {"type": "string"}, True),
    ("5", [5], {"type": "integer"}, False),
    (5, [5.0], {"type": "number"}, True),
    (5.0, [5], {"type": "integer"}, False),
    (True, [1], {"type": "integer"}, False),
    ([], [[1], ""], {"type": "array", "items": {"type": "integer"}}, True),
    (["A", "b c"], [["a", "bc"]], {"type": "array", "items": {"type": "string"}}, True),
    (["a", "b"], [["b", "a"]], {"type": "array", "items": {"type": "string"}}, False),
    ({"k": "X"}, [{"k": ["x", "y"], "o": ["1", ""]}], {"type": "object"}, True),
    ({"k": "z"}, [{"k": ["x", "y"]}], {"type": "object"}, False),
    ({"k": "x", "l": 1}, [{"k": ["x"]}], {"type": "object"}, False),
    (list("var"), ["var"], {"type": "array"}, False),
    ("x", [], None, False),
  ],
)
def test_values_are_accepted_as_the_leaderboard_means_it(value, accepted, schema, same):
  assert is_accepted(value, accepted, schema) is same


def two_calls(first: object, second: object) -> ToolTask:
  return ToolTask.from_row(
    {
      "prompt": "x",
      "tools": [
        {
          "name": "f",
          "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
          },
        }
      ],
      "reward_model": {
        "ground_truth": [{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": 1}}]
      },
      "extra_info": {"possible_answers": [{"f": first}, {"f": second}]},
    }
  )


def test_parallel_calls_take_the_best_assignment_where_the_leaderboard_takes_the_first():
  # The first wanted call accepts both; taking the first fit for it leaves none for the second.
  task = two_calls({"x": [1], "y": [2, ""]}, {"x": [1], "y": [2]})
  both = [{"name": "f", "arguments": {"x": 1, "y": 2}}, {"name": "f", "arguments": {"x": 1}}]
  assert score(json.dumps(both), task).total == 1.0
  assert score(json.dumps(both[::-1]), task).total == 1.0
  assert score(json.dumps([both[1], both[1]]), task).error == "missing_argument"


def test_a_value_outside_the_accepted_ones_is_named():
  task = two_calls({"x": [1]}, {"x": [2]})
  calls = [{"name": "f", "arguments": {"x": 2}}, {"name": "f", "arguments": {"x": 3}}]
  found = score(json.dumps(calls), task, reward="graded")
  assert (found.total, found.wrong_arguments) == (0.5, ("x",))
