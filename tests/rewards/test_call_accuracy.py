"""Accuracy of calls alone, on rows of the leaderboard: what is right there and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_jax.rewards import CallAccuracy
from grpo_jax.tasks.bfcl import IRRELEVANCE, LIVE, NON_LIVE, RELEVANCE, read_category

ROWS = Path(__file__).parents[1] / "fixtures" / "bfcl"
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
CUT = '<tool_call>\n{"name": "f", "arguments": {'


def scored(text: str, task, parse="auto"):
  (found,) = CallAccuracy(parse).score_batch([text], [task])
  return found.total, found.error


def blocks(calls: list[dict]) -> str:
  return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


@pytest.mark.parametrize("category", [*NON_LIVE, *LIVE])
def test_right_calls_are_right_in_every_form_and_mutations_are_wrong(category):
  for task in read_category(ROWS, category):
    calls = [call.to_json() for call in task.calls]
    assert scored(task.answer, task) == scored(blocks(calls), task) == (1.0, None)
    first, *rest = calls
    arguments = first["arguments"]
    mutated = {
      "extra_call": [*calls, first],
      "invented_tool": [{**first, "name": first["name"] + "x"}, *rest],
      "extra_argument": [{**first, "arguments": {**arguments, "zz": 1}}, *rest],
    }
    for name, value in arguments.items():
      other = {"a": 1} if not isinstance(value, dict) else "a"
      changed = {**first, "arguments": {**arguments, name: other}}
      mutated.setdefault("wrong_argument", [changed, *rest])
      missing = {key: kept for key, kept in arguments.items() if key != name}
      mutated.setdefault("missing_argument", [{**first, "arguments": missing}, *rest])
    for error, wrong in mutated.items():
      assert scored(blocks(wrong), task) == (0.0, error), (task.id, wrong)
    if rest:
      assert scored(blocks(rest), task) == (0.0, "missing_call")
    assert scored("I would call it, if I could.", task) == (0.0, "no_call")
    assert scored(CUT, task) == (0.0, "unparsable")


@pytest.mark.parametrize("category", IRRELEVANCE)
def test_irrelevance_is_no_call_whatever_the_words(category):
  for task in read_category(ROWS, category):
    for text in ("Sorry, I have no tool for that.", "", "Paris, of course!", "Which city?", CUT):
      assert scored(text, task) == (1.0, None)
    assert scored(CALL, task) == scored(f"Let me see. {CALL}", task) == (0.0, "needless_call")
    assert scored("[f(x=1)]", task) == (0.0, "needless_call")


@pytest.mark.parametrize("category", RELEVANCE)
def test_relevance_is_any_call(category):
  for task in read_category(ROWS, category):
    assert scored(CALL, task) == scored(f"{CALL}\n{CALL}", task) == (1.0, None)
    assert scored("Sorry, I can't.", task) == (0.0, "no_call")
    assert scored(CUT, task) == (0.0, "unparsable")


def test_which_forms_count_follows_the_parser():
  (task, _) = read_category(ROWS, "live_relevance")
  fenced = '```json\n{"name": "f", "arguments": {}}\n```'
  assert scored(fenced, task) == (1.0, None)
  assert scored(fenced, task, "strict") == (0.0, "unparsable")
