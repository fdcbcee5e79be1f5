"""The leaderboard's tasks: what the prompt shows, what is checked, and that all can be answered."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from pathlib import Path

import jsonschema
import pytest

from grpo_jax.files.wheels import download_wheel, find_wheel
from grpo_jax.rewards import CallAccuracy
from grpo_jax.tasks.bfcl import (
  CATEGORIES,
  IRRELEVANCE,
  PACKAGE,
  RELEVANCE,
  chosen_categories,
  json_schema,
  read_category,
  right_calls,
)
from grpo_jax.tasks.schema import ToolSpec

ROWS = Path(__file__).parents[1] / "fixtures" / "bfcl"
SIZES = (400, 200, 200, 200, 240, 258, 1053, 16, 24, 884, 16)
# The leaderboard's checker takes no answer to these either: an empty list of accepted values is
# never met, and two truths have arguments that their tools do not.
IMPOSSIBLE = {
  "live_simple_106-63-0",
  "live_simple_112-68-0",
  "live_multiple_862-181-3",
  "live_multiple_964-207-0",
}


def shown_types(schema: object) -> set[str]:
  """All types that a schema names."""
  if isinstance(schema, list):
    return set().union(*map(shown_types, schema)) if schema else set()
  if not isinstance(schema, dict):
    return set()
  own = {schema["type"]} if isinstance(schema.get("type"), str) else set()
  return own.union(*map(shown_types, schema.values()))


def test_types_become_those_of_json_schema_at_every_depth():
  schema = {
    "type": "dict",
    "properties": {
      "type": {"type": "any", "description": "Any."},  # an argument of that name is no type
      "at": {"type": "tuple", "items": {"type": "float"}},
      "price": {"type": "float", "description": "In euros.", "default": 1.5},
      "boxes": {
        "type": "array",
        "items": {"type": "dict", "properties": {"x": {"type": "float"}, "n": {"type": "integer"}}},
      },
      "more": {"type": "dict", "additionalProperties": {"type": "any"}},
    },
    "required": ["at"],
  }
  before = copy.deepcopy(schema)
  a_float = "This is a float type value."
  assert json_schema(schema) == {
    "type": "object",
    "properties": {
      "type": {"type": "string", "description": "Any."},
      "at": {"type": "array", "items": {"type": "number"}},
      "price": {
        "type": "number", "format": "float", "description": f"In euros. {a_float}", "default": 1.5,
      },
      "boxes": {
        "type": "array",
        "items": {
          "type": "object",
          "properties": {
            "x": {"type": "number", "format": "float", "description": a_float},
            "n": {"type": "integer"},
          },
        },
      },
      "more": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["at"],
  }  # fmt: skip
  assert schema == before


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_show_json_schemas_and_checks_keep_the_leaderboards_types(category):
  for task in read_category(ROWS, category):
    assert task.native_tools == bool(task.tools) and task.tool_name == category
    for tool in task.tools:
      shown = tool.to_chat()["function"]
      jsonschema.Draft202012Validator.check_schema(shown["parameters"])
      assert not shown_types(shown["parameters"]) & {"dict", "float", "tuple", "any"}
      assert shown["description"].endswith("in Python 3 syntax.")
      assert tool.parameters["type"] == "dict"
    wants = (task.behavior == "refuse", bool(task.calls), task.possible_answers is not None)
    free, loose = category in IRRELEVANCE, category in RELEVANCE
    assert wants == (free, not free and not loose, not free and not loose)


def test_the_right_calls_are_the_first_accepted_values_of_what_must_be_given():
  tool = ToolSpec("f", parameters={"required": ["must"]})
  accepted = [
    {
      "f": {
        "must": ["", "x"],
        "may": ["", 1],
        "two": [[1, 2], [3]],
        "object": [{"k": ["v", "w"], "left_out": ["", 1], "inner": [{"deep": 2}]}],
        "objects": [[{"k": [1]}, {"k": [2]}]],
        "nothing": [],
      }
    },
    {"g": {}},
  ]
  f, g = right_calls(accepted, [tool])
  assert (f.name, g.name, g.arguments) == ("f", "g", {})
  assert f.arguments == {
    "must": "x",
    "two": [1, 2],
    "object": {"k": "v", "inner": {"deep": 2}},
    "objects": [{"k": 1}, {"k": 2}],
  }


def test_a_wheel_is_read_without_unpacking_it(tmp_path):
  wheel = tmp_path / "some.whl"
  with zipfile.ZipFile(wheel, "w") as archive:
    for path in ROWS.rglob("*.json"):
      archive.write(path, f"bfcl_eval/data/{path.relative_to(ROWS)}")
  for category in CATEGORIES:
    assert read_category(wheel, category) == read_category(ROWS, category)


def test_categories_have_groups_and_one_order():
  assert chosen_categories(["all"]) == list(CATEGORIES)
  assert chosen_categories(["live", "simple"])[:2] == ["simple_python", "live_simple"]
  assert set(chosen_categories(["live", "non_live"])) == set(CATEGORIES)
  assert chosen_categories(["parallel", "multiple", "parallel"]) == ["multiple", "parallel"]
  with pytest.raises(ValueError, match=r"category 'java'; expected some of simple_python, "):
    chosen_categories(["java"])


def test_what_is_not_the_data_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"holds no BFCL_v4_parallel\.json of bfcl-eval=="):
    read_category(tmp_path, "parallel")
  shutil.copytree(ROWS, tmp_path / "rows")
  answers = tmp_path / "rows" / "possible_answer" / "BFCL_v4_parallel.json"
  answers.write_text("\n".join(reversed(answers.read_text().splitlines())))
  with pytest.raises(ValueError, match="are not those to its questions"):
    read_category(tmp_path / "rows", "parallel")


@pytest.mark.slow
def test_every_task_is_read_and_its_ground_truth_is_right(request):
  folder = Path(request.config.cache.mkdir("bfcl"))
  download_wheel(PACKAGE, folder)
  wheel, reward = find_wheel(PACKAGE, folder), CallAccuracy()
  sizes, failed = [], set()
  for category in CATEGORIES:
    tasks = read_category(wheel, category)
    sizes.append(len(tasks))
    for task in tasks:
      for tool in task.tools:
        jsonschema.Draft202012Validator.check_schema(tool.given["parameters"])
    wanted = [task for task in tasks if task.calls]
    found = reward.score_batch([task.answer for task in wanted], wanted)
    failed |= {task.id for task, one in zip(wanted, found, strict=True) if one.total != 1.0}
    calls = [[call.to_json() for call in task.calls] for task in wanted]
    for mutated in (
      [[*each, each[0]] for each in calls],
      [[{**each[0], "name": each[0]["name"] + "x"}, *each[1:]] for each in calls],
      [[{**each[0], "arguments": {**each[0]["arguments"], "zz": 1}}, *each[1:]] for each in calls],
    ):
      texts = [json.dumps(each) for each in mutated]
      assert not any(one.total for one in reward.score_batch(texts, wanted))
  assert tuple(sizes) == SIZES and sum(sizes) == 3491
  assert failed == IMPOSSIBLE
