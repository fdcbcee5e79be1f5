"""The Berkeley Function Calling Leaderboard's single-turn Python tasks (BFCL, Apache-2.0).

Their source is the PyPI package `bfcl-eval`, of which only the data files are read: nothing of it
is installed, imported or run.
"""

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax.tasks.schema import ToolCall, ToolSpec, ToolTask

PACKAGE = "bfcl-eval==2026.3.23"
WHEEL_SHA256 = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"

NON_LIVE = ("simple_python", "multiple", "parallel", "parallel_multiple")
LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
IRRELEVANCE = ("irrelevance", "live_irrelevance")  # no tool on offer fits
RELEVANCE = ("live_relevance",)  # some tool fits; which call is right is not said
CATEGORIES = (*NON_LIVE, IRRELEVANCE[0], *LIVE, IRRELEVANCE[1], *RELEVANCE)
# What `--categories` takes besides their names.
GROUPS: Mapping[str, tuple[str, ...]] = {
  "all": CATEGORIES,
  "non_live": (*NON_LIVE, IRRELEVANCE[0]),
  "live": (*LIVE, IRRELEVANCE[1], *RELEVANCE),
  "simple": NON_LIVE[:1],
}

# As the leaderboard's own handlers for APIs translate its types (GORILLA_TO_OPENAPI).
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
# What it adds to every description, whatever the model writes its calls in.
_LANGUAGE_HINT = " Note that the provided function is in Python 3 syntax."
_FLOAT_HINT = " This is a float type value."


def chosen_categories(names: Iterable[str]) -> list[str]:
  """The categories that a flag names, groups among them, each once and in the usual order.

  Raises:
    ValueError: an unknown name.
  """
  wanted: set[str] = set()
  for name in names:
    if name not in CATEGORIES and name not in GROUPS:
      raise ValueError(
        f"category {name!r}; expected some of {', '.join(CATEGORIES)}, or {', '.join(GROUPS)}"
      )
    wanted.update(GROUPS.get(name, (name,)))
  return [category for category in CATEGORIES if category in wanted]


def read_category(source: Path, category: str) -> list[ToolTask]:
  """Reads the tasks of one category.

  Args:
    source: the wheel of `PACKAGE`, or a folder with `BFCL_v4_*.json` and `possible_answer/`.
    category: one of `CATEGORIES`.

  Returns:
    Tasks whose templates show JSON schemas, and whose calls are checked by the leaderboard's own
    types. Those of `IRRELEVANCE` want no call; those of `RELEVANCE` want calls and say not which.
    `tool_name` is the category.

  Raises:
    ValueError: the source does not hold what is expected.
  """
  name = f"BFCL_v4_{category}.json"
  with_answers = category not in (*IRRELEVANCE, *RELEVANCE)
  rows = _read_lines(source, name)
  answers: list[Any] = [None] * len(rows)
  if with_answers:
    found = _read_lines(source, f"possible_answer/{name}")
    if [answer["id"] for answer in found] != [row["id"] for row in rows]:
      raise ValueError(f"{source}: the answers to {name} are not those to its questions")
    answers = [answer["ground_truth"] for answer in found]
  return [_task(category, *pair) for pair in zip(rows, answers, strict=True)]


def right_calls(
  accepted: Sequence[Mapping[str, Mapping[str, Sequence[Any]]]], tools: Sequence[ToolSpec]
) -> tuple[ToolCall, ...]:
  """The shortest right calls: of each argument that must be given the first accepted value."""
  required = {tool.name: tool.required for tool in tools}
  return tuple(
    ToolCall(
      name,
      {
        argument: _first(values)
        for argument, values in arguments.items()
        if values and ("" not in values or argument in required.get(name, ()))
      },
    )
    for entry in accepted
    for name, arguments in entry.items()
  )


def json_schema(schema: Any) -> Any:
  """A schema with the leaderboard's types as one with JSON schema's, as its handlers do it.

  `dict`, `float`, `tuple` and `any` become object, number, array and string; that a number was a
  float is said in the argument's `format` and description.
  """
  if not isinstance(schema, Mapping):
    return schema
  found = dict(schema)
  if isinstance(kind := schema.get("type"), str):
    found["type"] = _JSON_TYPES.get(kind, kind)
  for name in ("items", "additionalProperties"):
    if name in schema:
      found[name] = json_schema(schema[name])
  if isinstance(properties := schema.get("properties"), Mapping):
    found["properties"] = {name: _argument_schema(inner) for name, inner in properties.items()}
  return found


def _argument_schema(schema: Any) -> Any:
  found = json_schema(schema)
  if isinstance(schema, Mapping) and schema.get("type") == "float":
    found["format"] = "float"
    found["description"] = f"{schema.get('description', '')}{_FLOAT_HINT}".lstrip()
  return found


def _read_lines(source: Path, name: str) -> list[dict[str, Any]]:
  try:
    if source.is_dir():
      text = (source / name).read_text(encoding="utf-8")
    else:
      with zipfile.ZipFile(source) as wheel:
        text = wheel.read(f"bfcl_eval/data/{name}").decode()
  except (KeyError, FileNotFoundError, zipfile.BadZipFile) as error:
    raise ValueError(f"{source} holds no {name} of {PACKAGE}: {error}") from error
  return [json.loads(line) for line in text.split("\n") if line]


def _task(category: str, row: Mapping[str, Any], accepted: Sequence[Any] | None) -> ToolTask:
  tools = tuple(_tool(function) for function in row["function"])
  calls = right_calls(accepted or (), tools)
  return ToolTask(
    messages=tuple(row["question"][0]),
    behavior="refuse" if category in IRRELEVANCE else "execute",
    calls=calls,
    answer=json.dumps([call.to_json() for call in calls], ensure_ascii=False) if calls else "",
    tools=tools,
    native_tools=bool(tools),
    possible_answers=None if accepted is None else tuple(accepted),
    extra={"id": row["id"], "tool": category},
    data_source="bfcl",
  )


def _tool(function: Mapping[str, Any]) -> ToolSpec:
  description = str(function.get("description") or "")
  shown = {
    **function,
    "description": description + _LANGUAGE_HINT,
    "parameters": json_schema(function["parameters"]),
  }
  return ToolSpec(function["name"], description, function["parameters"], shown)


def _first(values: Sequence[Any]) -> Any:
  """The first accepted value that is not `""` (may be left out), if there is any other."""
  return _concrete(next((value for value in values if value != ""), ""))


def _concrete(value: Any) -> Any:
  """An accepted object, or one in a list, maps its keys to accepted values: the first of each."""
  if isinstance(value, Mapping):
    return {key: values[0] for key, values in value.items() if values and "" not in values}
  if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
    return [_concrete(item) for item in value]
  return value
