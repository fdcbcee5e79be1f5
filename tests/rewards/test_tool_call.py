from __future__ import annotations

import pytest

from grpo_jax.rewards.matching.tool_call import compare_calls
from grpo_jax.tasks.schema import ToolCall, ToolTask

TOOLS = [
  {
    "name": name,
    "parameters": {
      "type": "object",
      "properties": {
        "a": {"type": "integer"},
        "b": {"type": "number", "default": 1},
        "c": {"type": "string"},
      },
      "required": ["a"],
    },
  }
  for name in ("f", "g")
]


def wanted(*calls: ToolCall) -> ToolTask:
  return ToolTask.from_row(
    {
      "prompt": "x",
      "tools": TOOLS,
      "reward_model": {"ground_truth": [call.to_json() for call in calls]},
    }
  )


def f(**arguments: object) -> ToolCall:
  return ToolCall("f", arguments)


def g(**arguments: object) -> ToolCall:
  return ToolCall("g", arguments)


@pytest.mark.parametrize(
  ("given", "error", "right", "total"),
  [
    ([f(a=1, c="x")], None, 2, 2),
    ([f(a=1, c="x", b=1.0)], None, 2, 2),
    ([f(a=1)], "missing_argument", 1, 2),
    ([f(a=2, c="x")], "wrong_argument", 1, 2),
    ([f(a=2)], "wrong_argument", 0, 2),
    ([f(a=1, c="x", b=2)], "extra_argument", 2, 3),
    ([f(a=1, c="x", d=2)], "extra_argument", 2, 3),
    ([g(a=1, c="x")], "wrong_tool", 0, 2),
    ([ToolCall("h", {"a": 1, "c": "x"})], "invented_tool", 0, 2),
    ([f(a=1, c="x"), g(a=1)], "extra_call", 0, 2),
    ([f(a=1, c="x"), ToolCall("h", {})], "invented_tool", 0, 2),
  ],
)
def test_one_call_is_compared_argument_by_argument(given, error, right, total):
  found = compare_calls(given, wanted(f(a=1, c="x")))
  assert (found.error, found.right, found.total) == (error, right, total)
  assert found.tools_right == (error in (None, "missing_argument", "wrong_argument") or right == 2)


def test_a_wanted_default_may_be_left_out():
  assert compare_calls([f(a=1)], wanted(f(a=1, b=1.0))).error is None
  assert compare_calls([f(a=1)], wanted(f(a=1, b=2))).error == "missing_argument"


def test_parallel_calls_match_as_a_set():
  task = wanted(f(a=1), g(a=2), f(a=3))
  assert compare_calls([f(a=3), f(a=1), g(a=2)], task).error is None
  assert compare_calls([f(a=3), f(a=1), g(a=2)], task, ordered=True).error == "wrong_order"
  assert compare_calls([f(a=3), g(a=2), f(a=1)], task, ordered=True).error == "wrong_argument"
  assert compare_calls([f(a=1), g(a=2)], task).error == "missing_call"
  assert compare_calls([f(a=1), f(a=1), f(a=3)], task).error == "wrong_tool"


def test_parallel_calls_are_paired_for_the_most_entirely_right_calls():
  # Pairing greedily by shared arguments would give the first call to the second wanted one.
  task = wanted(f(a=1, c="x"), f(a=1, b=2, c="x"))
  found = compare_calls([f(a=1, b=2, c="x"), f(a=9, b=2, c="x")], task)
  assert (found.right, found.total) == (4, 6)
  assert found.wrong_arguments == ("a", "b")


def test_a_call_without_arguments_is_right_or_not():
  assert compare_calls([f()], wanted(f())).share == 1.0
  assert compare_calls([f(a=1)], wanted(f())).share == 0.0
