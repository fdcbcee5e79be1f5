from __future__ import annotations

import json
import random
import re
from collections import Counter

import jsonschema
import pytest

from grpo_jax.rewards import score
from grpo_jax.tasks.jsonl import read_tools
from grpo_jax.tasks.rows import read_row
from grpo_jax.tasks.schema import ToolSpec
from grpo_jax.tasks.synthetic.own_tools import OWN_SIZES, name_words, own_rows, sayable

WEATHER = {
  "name": "get_current_weather",
  "description": "Gets the current weather in a given location.",
  "parameters": {
    "type": "object",
    "properties": {
      "location": {"type": "string", "description": "City and state, e.g. 'San Francisco, CA'"},
      "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["location"],
  },
}
FLIGHTS = {
  "name": "searchFlights",
  "description": "Search for flights between two airports.",
  "parameters": {
    "type": "object",
    "properties": {
      "origin": {"type": "string", "description": "Departure airport"},
      "destination": {"type": "string"},
      "departure_date": {"type": "string", "format": "date"},
      "passengers": {"type": "integer", "minimum": 1, "maximum": 9},
      "nonstop": {"type": "boolean"},
    },
    "required": ["origin", "destination", "departure_date"],
  },
}
TICKET = {
  "type": "function",
  "function": {
    "name": "create_ticket",
    "description": "Creates a support ticket.",
    "strict": True,
    "parameters": {
      "type": "object",
      "properties": {
        "title": {"type": "string"},
        "priority": {"$ref": "#/$defs/Priority"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "assignee_email": {"anyOf": [{"type": "string", "format": "email"}, {"type": "null"}]},
        "meta": {"type": "object"},
      },
      "required": ["title", "priority"],
      "$defs": {"Priority": {"enum": ["low", "in_progress", "high"]}},
    },
  },
}
REFUND = {
  "name": "refund",
  "description": "",
  "parameters": {
    "type": "object",
    "properties": {
      "order_id": {"type": "string", "pattern": r"^ORD-\d{4}$", "examples": ["ORD-1234"]},
      "amount": {"type": "number", "exclusiveMinimum": 0, "maximum": 500, "multipleOf": 0.5},
    },
    "required": ["order_id", "amount"],
  },
}
NESTED = {
  "name": "deploy",
  "description": "Deploy a service.",
  "parameters": {
    "type": "object",
    "properties": {"spec": {"type": "object"}},
    "required": ["spec"],
  },
}
SPECS = [ToolSpec.from_json(tool) for tool in (WEATHER, FLIGHTS, TICKET, REFUND)]
VALIDATORS = {s.name: jsonschema.Draft202012Validator(dict(s.parameters)) for s in SPECS}
ROWS = {part: own_rows(SPECS, 0, part) for part in OWN_SIZES}
TASKS = {
  part: [read_row(json.loads(json.dumps(row))) for row in rows] for part, rows in ROWS.items()
}


@pytest.mark.parametrize("part", OWN_SIZES)
def test_rows_have_their_shares_and_right_calls_that_fit_the_schemas(part):
  tasks, size = TASKS[part], OWN_SIZES[part]
  assert len(tasks) == size and len({task.id for task in tasks}) == size
  shares = Counter(task.behavior for task in tasks)
  assert shares == {"execute": 0.6 * size, "clarify": 0.25 * size, "refuse": 0.15 * size}
  seen = Counter()
  for task in tasks:
    specs = {tool.name: tool for tool in task.tools}
    assert specs.keys() <= {spec.name for spec in SPECS}
    for call in task.calls:
      VALIDATORS[call.name].validate(dict(call.arguments))
      seen.update((call.name, name) for name in call.arguments)
    if task.calls:
      assert score(task.answer, task, parse="auto").total == 1.0
  arguments = {(spec.name, name) for spec in SPECS for name in spec.properties}
  assert set(seen) == arguments - {("create_ticket", "meta")}  # objects cannot be said


@pytest.mark.parametrize("part", OWN_SIZES)
def test_requests_say_every_value_and_no_missing_one(part):
  for task in TASKS[part]:
    said = task.extra["spoken"]
    assert all(form.lower() in task.request.lower() for form in said)
    assert len(said) == sum(len(call.arguments) for call in task.calls) or not task.calls
    for name in task.missing:
      spoken = " ".join(name_words(name))
      assert spoken in task.answer.lower() and spoken not in task.request.lower()


def test_the_whole_schema_is_shown():
  native = [row for row in ROWS["train"] if "tools" in row]
  shown = [tool for row in native for tool in row["tools"]]
  assert TICKET in shown and {"type": "function", "function": WEATHER} in shown


def test_held_out_frames_and_values_are_not_those_of_training():
  parts = {part: {t.name: t for t in sayable(SPECS, part)[0]} for part in OWN_SIZES}
  closed = {"unit", "priority", "nonstop"}
  for name, tool in parts["train"].items():
    other = parts["held_out"][name]
    for kind, sentences in tool.requests.items():
      assert not {s.text for s in sentences} & {s.text for s in other.requests[kind]}
    for argument in tool.arguments:
      values = lambda of, name=argument.name: {json.dumps(v.value) for v in of.by_name[name].values}
      assert (values(tool) == values(other)) == (argument.name in closed)
      assert argument.name in closed or not values(tool) & values(other)
      assert not set(argument.ask) & set(other.by_name[argument.name].ask)
  requests = {part: {task.request.lower() for task in tasks} for part, tasks in TASKS.items()}
  assert not requests["train"] & requests["held_out"]


def test_what_is_held_out_does_not_depend_on_the_seed():
  def origins(part: str, seed: int) -> set[str]:
    calls = [call for row in own_rows(SPECS, seed, part, 200) for call in read_row(row).calls]
    return {call.arguments["origin"] for call in calls if call.name == "searchFlights"}

  trained, held_out = origins("train", 1) | origins("train", 2), origins("held_out", 3)
  assert trained and held_out and not trained & held_out


def test_requests_that_no_tool_grants_share_no_word_with_the_tools():
  for part, tasks in TASKS.items():
    unfit = [task for task in tasks if task.extra["situation"] == "unfit"]
    assert unfit
    for task in unfit:
      assert task.tool_name == "none"
      assert not re.search(r"(?i)\b(weather|forecast|flights?|tickets?|refund)\b", task.request), (
        part
      )


def test_orders_are_in_the_words_of_the_description_or_the_name():
  requests = " ".join(task.request.lower() for task in TASKS["train"])
  assert "get the current weather" in requests and "given location" not in requests
  assert "create a support ticket" in requests and "creates" not in requests
  moon = ToolSpec.from_json({"name": "moonPhase", "parameters": WEATHER["parameters"]})
  rows = own_rows([moon], 0, "train", 100)
  assert any("run moon phase" in row["prompt"][-1]["content"].lower() for row in rows)
  assert name_words("getHTTPStatus") == ["get", "http", "status"]
  assert name_words("calendar.add-event_2") == ["calendar", "add", "event", "2"]


@pytest.mark.parametrize(
  ("description", "order"),
  [
    ("This function returns the latest stock price.", "return the latest stock price"),
    ("Allows users to book a meeting room (max. 8 people)", "book a meeting room"),
    ("A tool to send the user's notes to a printer.", "send my notes"),
    ('Searches for "open" issues', "search for open issues"),
    ("Everything about stars.", "run moon phase"),
  ],
)
def test_the_description_becomes_an_order(description, order):
  properties = {"place": {"type": "string"}}
  parameters = {"type": "object", "properties": properties, "required": ["place"]}
  spec = ToolSpec("moonPhase", description, parameters)
  rows = own_rows([spec], 0, "train", 60)
  assert any(order in row["prompt"][-1]["content"].lower() for row in rows)


def test_calls_that_cannot_be_said_leave_their_tool_out_with_a_reason():
  nested = ToolSpec.from_json(NESTED)
  tools, problems = sayable([*SPECS, nested], "train")
  assert [tool.name for tool in tools] == [spec.name for spec in SPECS]
  assert len(problems) == 1 and "deploy" in problems[0] and '"examples"' in problems[0]
  with pytest.raises(ValueError, match="deploy"):
    own_rows([nested], 0, "train")
  with pytest.raises(ValueError, match="there are no tools"):
    own_rows([], 0, "train")


def test_one_tool_without_required_arguments_is_enough():
  light = {
    "name": "toggleLight",
    "description": "",
    "parameters": {"type": "object", "properties": {"level": {"type": "integer"}}},
  }
  rows = own_rows([ToolSpec.from_json(light)], 0, "train", 100)
  shares = Counter(row["extra_info"]["behavior"] for row in rows)
  assert shares == {"execute": 85, "refuse": 15}  # nothing can be missing


def test_rows_are_a_pure_function_of_tools_seed_and_part():
  assert own_rows(SPECS, 5, "held_out", 50) == own_rows(SPECS, 5, "held_out", 50)
  assert own_rows(SPECS, 5, "held_out", 50) != own_rows(SPECS, 6, "held_out", 50)
  random.seed(1)
  assert own_rows(SPECS, 0, "held_out") == ROWS["held_out"]


def test_tools_are_read_from_a_list_or_an_object_with_tools(tmp_path):
  path = tmp_path / "tools.json"
  for content in ([WEATHER, TICKET], {"tools": [WEATHER, TICKET]}):
    path.write_text(json.dumps(content))
    assert [tool.name for tool in read_tools(path)] == ["get_current_weather", "create_ticket"]
  path.write_text("{}")
  with pytest.raises(ValueError, match="expected a JSON list of tool schemas"):
    read_tools(path)
