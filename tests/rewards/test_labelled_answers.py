"""The rules for asking and declining agree with people's labels of what models and people write.

`labelled_answers.jsonl` holds tools (a line each), then answers to tasks with them. The rules were
made on the set `first`; `later` was labelled after they were frozen, on other tools, before any of
it was scored. docs/rewards.md says how both were made and shows the figures that are counted here.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from grpo_jax.rewards import score
from grpo_jax.rewards.behavior import asks_for_missing, read_text
from grpo_jax.tasks.schema import ToolTask

LINES = [
  json.loads(line)
  for line in Path(__file__).with_name("labelled_answers.jsonl").read_text("utf-8").splitlines()
]
TOOLS = {line["name"]: line for line in LINES if "name" in line}
ANSWERS = [line for line in LINES if "answer" in line]
PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text("utf-8")
KINDS = ("asks_missing", "asks_other", "declines", "hedges", "neither")


def task_of(line: dict) -> ToolTask:
  """The task that was answered: something is missing, or nothing on offer can do it."""
  missing = line.get("missing", [])
  return ToolTask.from_row(
    {
      "prompt": line["request"],
      "tools": [TOOLS[line["tool"]]],
      "reward_model": {"ground_truth": "Which one?" if missing else "Sorry, I can't do that."},
      "extra_info": {"tool": line["tool"], "missing": missing},
    }
  )


def kind_of(line: dict) -> str:
  """What the rules say that an answer does, in the words of the labels."""
  reading = read_text(line["answer"])
  if reading.kind != "asks":
    return {"declines": "declines", "hedging": "hedges"}.get(reading.kind, "neither")
  named = line.get("missing") and asks_for_missing(reading, task_of(line)) == "asks"
  return "asks_missing" if named else "asks_other"


@pytest.mark.parametrize("name", ["first"])
def test_the_documented_share_of_the_labels_is_agreed_with(name):
  wanted, agreed = Counter(), Counter()
  for line in (line for line in ANSWERS if line["set"] == name):
    wanted[line["label"]] += 1
    agreed[line["label"]] += kind_of(line) == line["label"]
  cells = [f"{agreed[kind]} of {wanted[kind]}" for kind in KINDS]
  total, count = agreed.total(), wanted.total()
  assert f"| `{name}` | {' | '.join(cells)} | {total} of {count}, {total / count:.1%} |" in PAGE
  assert total / count >= 0.95


def test_full_marks_go_to_what_was_wanted_and_to_nothing_else():
  wrong = []
  for line in ANSWERS:
    task = task_of(line)
    right = "asks_missing" if task.behavior == "clarify" else "declines"
    paid = score(line["answer"], task, parse="auto").total == 1.0
    wrong += [line] if paid != (line["label"] == right) else []
  assert len(wrong) / len(ANSWERS) < 0.05


def test_labels_are_of_known_kinds_and_every_source_is_told():
  assert {line["label"] for line in ANSWERS} == set(KINDS)
  assert all(line["source"] for line in ANSWERS)
  pairs = [(line["tool"], line["request"], line["answer"]) for line in ANSWERS]
  assert len(set(pairs)) == len(pairs)
