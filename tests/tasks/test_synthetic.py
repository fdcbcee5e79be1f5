from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter

import jsonschema
import pytest

from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.synthetic.purposes import HELD_OUT_PURPOSES, TRAINING_PURPOSES
from grpo_jax.tasks.synthetic.recipes import Argument, Recipe
from grpo_jax.tasks.synthetic.splits import SPLIT_SIZES, SPLITS, generate
from grpo_jax.tasks.synthetic.tools import FUNCTION_WORDS, TRAINING_RECIPES, UNSEEN_RECIPES

ROWS = {split: generate(0, split) for split in SPLITS}
TASKS = {split: [ToolTask.from_row(row) for row in rows] for split, rows in ROWS.items()}


def prompt_text(row: dict) -> str:
  return json.dumps(row["prompt"], ensure_ascii=False)


def calls_made(tasks: list[ToolTask]) -> set[str]:
  return {json.dumps(call.to_json(), sort_keys=True) for task in tasks for call in task.calls}


def leaves(value):
  if isinstance(value, list):
    for item in value:
      yield from leaves(item)
  else:
    yield value


@pytest.mark.parametrize("split", SPLITS)
def test_split_has_its_size_shares_and_distinct_prompts(split):
  tasks = TASKS[split]
  size = SPLIT_SIZES[split]
  assert len(tasks) == size
  shares = Counter(task.behavior for task in tasks)
  assert shares == {
    "execute": 0.60 * size,
    "clarify": 0.25 * size,
    "refuse": 0.15 * size,
  }
  assert len({prompt_text(row) for row in ROWS[split]}) == size
  assert len({task.id for task in tasks}) == size
  phrasings = Counter(task.extra["phrasing"] for task in tasks)
  assert set(phrasings) == {"formal", "casual", "terse"}
  assert min(phrasings.values()) > 0.25 * size
  assert {len(task.tools) for task in tasks} == {1, 2, 3}
  executed = Counter(task.tool_name for task in tasks if task.behavior == "execute")
  assert len(executed) == (10 if split == "unseen" else 5)
  assert max(executed.values()) - min(executed.values()) <= 1


@pytest.mark.parametrize("held_out", ["seen", "unseen"])
def test_no_held_out_prompt_or_call_occurs_in_training(held_out):
  train = {prompt_text(row) for row in ROWS["train"]}
  assert not train & {prompt_text(row) for row in ROWS[held_out]}
  requests = {task.request.lower() for task in TASKS["train"]}
  assert not requests & {task.request.lower() for task in TASKS[held_out]}
  assert not calls_made(TASKS["train"]) & calls_made(TASKS[held_out])


def test_seen_prompts_stay_held_out_whatever_the_seed_and_size_of_training():
  train = [ToolTask.from_row(row) for row in generate(7, "train", 4000)]
  requests = {task.request.lower() for task in train}
  assert not requests & {task.request.lower() for task in TASKS["seen"]}
  assert not calls_made(train) & calls_made(TASKS["seen"])


def test_unseen_names_and_values_appear_nowhere_in_training():
  train = " ".join(json.dumps(row, ensure_ascii=False) for row in ROWS["train"]).lower()
  train_words = set(re.findall(r"[^\W\d_]+", train))
  train_numbers = set(re.findall(r"(?<![\d.])\d+(?:\.\d+)?(?!\d)", train))
  texts, values = [], set()
  for recipe in UNSEEN_RECIPES:
    texts += [recipe.name, *(argument.name for argument in recipe.arguments)]
    values |= {value for argument in recipe.arguments for value in argument.values}
  texts += [value for value in values if isinstance(value, str)]
  found = set(re.findall(r"[^\W\d_]+", " ".join(texts).lower()))
  assert not (found - FUNCTION_WORDS) & train_words
  assert not {json.dumps(value) for value in values if not isinstance(value, str)} & train_numbers
  # Another seed draws other values of the same pools.
  assert not values & {v for r in TRAINING_RECIPES for a in r.arguments for v in a.values}


def test_harmful_and_idle_phrases_of_held_out_tasks_are_not_those_of_training():
  for field in ("deeds", "victims", "plans", "wishes"):
    assert not set(getattr(TRAINING_PURPOSES, field)) & set(getattr(HELD_OUT_PURPOSES, field))
  for split, other in (("train", HELD_OUT_PURPOSES), ("seen", TRAINING_PURPOSES)):
    for task in TASKS[split]:
      if task.extra["situation"] in ("harmful", "wish"):
        for phrase in (*other.plans, *other.wishes):
          assert not re.search(rf"\b{re.escape(phrase)}\b", task.request)


@pytest.mark.parametrize("split", SPLITS)
def test_every_value_of_a_call_stands_verbatim_in_its_request(split):
  for task in TASKS[split]:
    for call in task.calls:
      spec = next(tool for tool in task.tools if tool.name == call.name)
      jsonschema.Draft202012Validator(dict(spec.parameters)).validate(dict(call.arguments))
      values = [json.dumps(value) for value in call.arguments.values()]
      assert len(set(values)) == len(values)  # no flight from a city to itself
      assert list(call.arguments) == [name for name in spec.properties if name in call.arguments]
      for value in (leaf for entry in call.arguments.values() for leaf in leaves(entry)):
        shown = value if isinstance(value, str) else json.dumps(value)
        assert re.search(rf"(?<![\w.]){re.escape(shown)}(?!\w|\.\d)", task.request), task.request


def test_nearly_every_value_is_introduced_by_a_word_of_its_argument():
  cued = total = 0
  for task in TASKS["train"] + TASKS["unseen"]:
    for call in task.calls:
      for name in call.arguments:
        total += 1
        cued += all(word in task.request.lower() for word in name.split("_"))
  assert cued / total > 0.9


@pytest.mark.parametrize("split", SPLITS)
def test_clarify_leaves_out_exactly_the_required_arguments_it_lists(split):
  sizes = Counter()
  for task in TASKS[split]:
    if task.behavior != "clarify":
      assert not task.missing
      continue
    spec = next(tool for tool in task.tools if tool.name == task.tool_name)
    assert set(task.missing) <= set(spec.required)
    sizes[len(task.missing)] += 1
    recipe = next(r for r in (*TRAINING_RECIPES, *UNSEEN_RECIPES) if r.name == spec.name)
    for argument in recipe.required:
      if argument.name in task.missing:
        assert task.answer.endswith("?") and argument.spoken in task.answer
        cue = argument.name.replace("_", " ")
        assert cue == "text" or cue not in task.request.lower()
        used = [leaf for v in argument.values for leaf in leaves(v)]
        others = {v for a in recipe.arguments if a is not argument for v in a.values}
        for value in set(used) - others:
          shown = value if isinstance(value, str) else json.dumps(value)
          assert not re.search(rf"\b{re.escape(shown)}\b", task.request)
  assert sizes[1] > 4 * sizes[2] > 0


@pytest.mark.parametrize("split", SPLITS)
def test_refuse_tasks_are_harmful_or_offer_no_tool_that_fits(split):
  situations = Counter()
  for task in TASKS[split]:
    if task.behavior != "refuse":
      continue
    situations[task.extra["situation"]] += 1
    offered = {tool.name for tool in task.tools}
    assert task.answer.startswith("Sorry") and "?" not in task.answer
    assert (task.tool_name in offered) == (task.extra["situation"] == "harmful")
  assert set(situations) == {"harmful", "unfit", "wish"}
  assert abs(situations["harmful"] - 0.5 * sum(situations.values())) <= 1


def test_training_arguments_have_every_json_type_required_and_optional():
  arguments = [argument.to_schema() for r in TRAINING_RECIPES for argument in r.arguments]
  assert {schema["type"] for schema in arguments} == {
    "string",
    "integer",
    "number",
    "boolean",
    "array",
  }
  assert any("enum" in schema for schema in arguments)
  for recipe in (*TRAINING_RECIPES, *UNSEEN_RECIPES):
    assert 1 <= len(recipe.required) <= 2 and recipe.optional
    assert 2 <= len(recipe.arguments) <= 4


def test_same_seed_gives_the_same_rows_in_another_process():
  script = (
    "import hashlib, json; from grpo_jax.tasks.synthetic.splits import generate; "
    "print(hashlib.sha256(json.dumps(generate(3, 'seen', 60)).encode()).hexdigest())"
  )
  digests = {
    subprocess.run(
      [sys.executable, "-c", script],
      env={**os.environ, "PYTHONHASHSEED": hash_seed},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for hash_seed in ("1", "2")
  }
  assert len(digests) == 1
  assert generate(3, "seen", 60) != generate(4, "seen", 60)


def test_styles_differ_in_where_the_schemas_stand_and_in_nothing_else():
  native = [ToolTask.from_row(row) for row in generate(0, "unseen", 50, style="tools")]
  for left, right in zip(
    [ToolTask.from_row(r) for r in generate(0, "unseen", 50)], native, strict=True
  ):
    assert right.native_tools and not left.native_tools
    assert (left.tools, left.calls, left.request) == (right.tools, right.calls, right.request)


def test_impossible_demands_are_refused_in_one_sentence(monkeypatch):
  with pytest.raises(ValueError, match="expected one of train, seen, unseen"):
    generate(0, "test")
  with pytest.raises(ValueError, match="at least 1"):
    generate(0, "train", 0)
  word = Argument("word", "text", ("a",))
  few = [Recipe(f"echo_{i}", "Echo a word", [word], [], ["echo"], [], ["echo"]) for i in range(4)]
  monkeypatch.setattr("grpo_jax.tasks.synthetic.splits.UNSEEN_RECIPES", few)
  with pytest.raises(ValueError, match="cannot make 9000 distinct tasks"):
    generate(0, "unseen", 9000)
