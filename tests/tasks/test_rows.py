from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.tasks.rows import read_row, without_nulls
from grpo_jax.tasks.schema import ToolTask

WEATHER = {
  "type": "function",
  "function": {
    "name": "get_weather",
    "description": "Weather",
    "parameters": {
      "type": "object",
      "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
      "required": ["city"],
    },
  },
}
CALL = [{"name": "get_weather", "arguments": {"city": "Oslo"}}]


def contract(**changes) -> dict:
  row = {
    "prompt": [{"role": "user", "content": "Weather in Oslo"}],
    "tools": [WEATHER],
    "reward_model": {"style": "rule", "ground_truth": json.dumps(CALL)},
    "extra_info": {"behavior": "execute", "id": "a"},
  }
  return {key: value for key, value in {**row, **changes}.items() if value is not None}


def chat(*messages: dict, **fields) -> dict:
  return {"messages": list(messages), "tools": [WEATHER], **fields}


ASK = {"role": "user", "content": "Weather in Oslo?"}
TOOL_CALL = {
  "role": "assistant",
  "content": None,
  "tool_calls": [
    {
      "id": "call_1",
      "type": "function",
      "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
    }
  ],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": '{"degrees": 3}'}


def test_contract_row_is_read_as_the_schema_reads_it():
  assert read_row(contract()) == ToolTask.from_row(contract())


def test_sagemaker_row_takes_its_tools_from_the_system_message():
  system = "You may call:\n" + json.dumps(WEATHER["function"])
  prompt = [{"role": "system", "content": system}, ASK]
  task = read_row(contract(prompt=prompt, tools=None, extra_info=None))
  assert [tool.name for tool in task.tools] == ["get_weather"]
  assert not task.native_tools and task.behavior == "execute"


def test_verl_row_may_hold_its_fields_as_json_text():
  row = {
    "data_source": "tools",
    "ability": "tool_calling",
    "prompt": json.dumps([ASK]),
    "reward_model": json.dumps({"style": "rule", "ground_truth": json.dumps(CALL)}),
    "extra_info": json.dumps({"index": 4, "split": "train"}),
  }
  task = read_row(row)
  assert task.request == "Weather in Oslo?" and task.data_source == "tools"
  assert task.calls[0].arguments == {"city": "Oslo"} and task.extra["index"] == 4


def test_chat_row_learns_its_last_tool_call_from_the_messages_before_it():
  task = read_row(chat(ASK, TOOL_CALL, RESULT, {"role": "assistant", "content": "3 degrees"}, id=7))
  assert [dict(message) for message in task.messages] == [ASK]
  assert task.calls[0].to_json() == CALL[0] and task.native_tools and task.id == "7"
  again = {"role": "user", "content": "And for two days?"}
  task = read_row(chat(ASK, TOOL_CALL, RESULT, again, TOOL_CALL))
  assert [message["role"] for message in task.messages] == ["user", "assistant", "tool", "user"]
  # Templates render arguments as JSON; JSON text would come out quoted twice.
  assert task.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
  assert task.messages[1]["content"] == ""


def test_chat_row_without_tool_calls_learns_its_last_answer():
  question = {"role": "assistant", "content": [{"type": "text", "text": "Which city?"}]}
  assert read_row(chat({"role": "user", "content": "Weather"}, question)).behavior == "clarify"
  refusal = {"role": "assistant", "content": "Sorry, I can't."}
  task = read_row(chat({"role": "developer", "content": "Be brief."}, ASK, refusal))
  assert task.behavior == "refuse" and task.messages[0]["role"] == "system"


def changed_tool(**changes) -> list:
  return [{**WEATHER["function"], "parameters": {"type": "object", **changes}}]


@pytest.mark.parametrize(
  ("row", "problem"),
  [
    ([], "expected an object .one task., got a list"),
    ({"text": 1}, 'expected "prompt" and "reward_model", or "messages".*\'text\''),
    (contract(prompt=5), '"prompt" must be a non-empty list .*, got a number'),
    (contract(prompt=[]), '"prompt" must be a non-empty list'),
    (contract(prompt=["hi"]), "message 0 of the prompt must be an object .*, got text"),
    (contract(prompt=[{"role": "bot", "content": "x"}]), "role 'bot'; expected one of system"),
    (contract(prompt=[{"role": "user", "content": 3}]), 'needs "content" as text, got a number'),
    (contract(prompt=[{"role": "system", "content": "x"}]), "no user message"),
    (contract(prompt=[ASK, {"role": "assistant", "content": "x"}]), "ends with .* 'assistant'"),
    (
      contract(prompt=[{"role": "user", "content": [{"type": "image"}]}]),
      "parts that are not text",
    ),
    (contract(reward_model=None), '"reward_model" must be an object'),
    (contract(reward_model={"ground_truth": []}), "ground_truth must be a non-empty list"),
    (contract(extra_info=[1]), '"extra_info" must be an object'),
    (contract(extra_info={"id": []}), '"extra_info.id" must be text or an integer, got a list'),
    (contract(extra_info={"id": True}), '"extra_info.id" must be text .*, got a boolean'),
    (contract(extra_info={"missing": "city"}), '"extra_info.missing" must be a list .*, got text'),
    (contract(extra_info={"missing": ["city"]}), "is for clarify tasks, but this one is execute"),
    (contract(tools=5), '"tools" must be a list of tool schemas'),
    (contract(tools=[WEATHER, WEATHER]), "'get_weather' is on offer twice"),
    (contract(tools=changed_tool(properties=[])), '"properties" must be an object'),
    (contract(tools=changed_tool(required=5)), '"required" must be a list'),
    (contract(tools=changed_tool(required=["town"])), "'town' is not in \"properties\""),
    (
      contract(reward_model={"ground_truth": [{"name": "fly", "arguments": {}}]}),
      "calls 'fly', which is not among the tools on offer: get_weather",
    ),
    (
      contract(
        reward_model={"ground_truth": [{"name": "get_weather", "arguments": {"city": math.nan}}]}
      ),
      "an argument of 'get_weather' is no JSON value",
    ),
    (
      contract(reward_model={"ground_truth": [{"name": "get_weather", "arguments": {}}]}),
      "without its required 'city'",
    ),
    (
      contract(
        reward_model={"ground_truth": "Which one?"},
        extra_info={"behavior": "clarify", "missing": ["zip"]},
      ),
      "names 'zip', an argument of no tool on offer",
    ),
    (chat(ASK), "no assistant message"),
    ({"messages": {}}, '"messages" must be a list of messages, got an object'),
    (chat(ASK, {"role": "assistant", "tool_calls": 3}), "must be a list, got a number"),
    (
      chat(ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "x"}}]}),
      'needs a "function" with "name" and object "arguments"',
    ),
    (
      chat(
        ASK,
        {"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]},
      ),
      'needs a "function" with "name" and object "arguments"',
    ),
  ],
)
def test_a_bad_row_is_named_with_what_was_expected(row, problem):
  with pytest.raises(ValueError, match=problem):
    read_row(row)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
  ),
  max_leaves=6,
)
PATHS = [
  ("prompt",),
  ("prompt", 0),
  ("prompt", 0, "role"),
  ("prompt", 0, "content"),
  ("prompt", 0, "tool_calls"),
  ("tools",),
  ("tools", 0),
  ("tools", 0, "function"),
  ("tools", 0, "function", "name"),
  ("tools", 0, "function", "parameters"),
  ("tools", 0, "function", "parameters", "properties"),
  ("tools", 0, "function", "parameters", "required"),
  ("reward_model",),
  ("reward_model", "ground_truth"),
  ("extra_info",),
  ("extra_info", "behavior"),
  ("extra_info", "id"),
  ("extra_info", "missing"),
  ("extra_info", "possible_answers"),
  ("data_source",),
]


@pytest.mark.parametrize(
  "text",
  [
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    'Sure: <tool_call>{"name": "get_weather"',
    'Sure: {"name": "get_weather", "parameters": {"city": "Oslo"}}',
    '[ {"name": "get_weather", "argum',
    "[{'name': 'get_weather', 'arguments': {}}]",
    "{'name': 'get_weather'}",
    "[get_weather(city='Oslo')]",
    "get_weather(city='Oslo', days=2)",
    '```json\n[{"name": "get_weather", "arguments": {}}]\n```',
  ],
)
def test_calls_in_another_form_are_an_error_and_no_refusal(text):
  problem = "looks like"
  with pytest.raises(ValueError, match=problem):
    read_row(contract(reward_model={"ground_truth": text}, extra_info=None))
  with pytest.raises(ValueError, match=problem):
    read_row(chat(ASK, {"role": "assistant", "content": text}))


LEGACY = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
BARE = {"city": {"type": "str", "description": "where", "default": ""}}


@pytest.mark.parametrize(
  ("row", "problem"),
  [
    (
      chat(ASK, {"role": "assistant", "content": "Hello"}, reward_model={"ground_truth": CALL}),
      '"messages" and "reward_model"; expected "prompt" and "reward_model"',
    ),
    (
      chat(ASK, {"role": "assistant", "content": "Hello"}, ground_truth=CALL),
      '"messages" and "ground_truth"; expected "prompt" and "reward_model"',
    ),
    (
      chat(ASK, {"role": "assistant", "content": "Hello"}, functions=[WEATHER], tools=None),
      '"functions"; expected "tools"',
    ),
    (
      chat(ASK, {"role": "assistant", "content": "Let me see.", "function_call": LEGACY}),
      r'messages\[1\] has "function_call"; expected "tool_calls"',
    ),
    (
      contract(
        prompt=[ASK, {"role": "assistant", "content": "So.", "function_call": LEGACY}, RESULT]
      ),
      'message 1 of the prompt has "function_call"; expected "tool_calls"',
    ),
    (contract(behavior="refuse"), '"behavior" belongs in "extra_info"'),
    (contract(possible_answers=[]), '"possible_answers" belongs in "extra_info"'),
    (chat(ASK, TOOL_CALL, missing=["city"]), '"missing" belongs in "extra_info"'),
    (
      contract(tools=[{"name": "get_weather", "input_schema": {"type": "object"}}]),
      "'get_weather' has 'input_schema'; expected \"parameters\"",
    ),
    (
      contract(tools=[{"name": "get_weather", "parameters": BARE}]),
      '\'get_weather\': "parameters" must be a JSON schema, .* "properties"',
    ),
  ],
)
def test_what_a_row_says_in_the_wrong_place_is_an_error_and_not_dropped(row, problem):
  with pytest.raises(ValueError, match=problem):
    read_row(row)


def test_a_chat_keeps_its_id_beside_extra_info_as_json_text():
  task = read_row(chat(ASK, TOOL_CALL, id="a", extra_info='{"tool": "weather"}'))
  assert task.id == "a" and task.tool_name == "weather"


FREE = [{"name": "get_weather", "parameters": {"properties": {"city": {"type": "string"}}}}]


@pytest.mark.parametrize(
  "call",
  [
    {"name": "get_weather", "parameters": {"city": "Oslo"}},  # Llama 3's form
    {"name": "get_weather", "parameters": '{"city": "Oslo"}'},
    {"type": "function", "function": {"name": "get_weather", "parameters": {"city": "Oslo"}}},
    {"name": "get_weather", "arguments": {"city": "Oslo"}, "result": {"degrees": 3}},
  ],
)
@pytest.mark.parametrize("form", [lambda calls: calls, json.dumps], ids=["list", "text"])
def test_wanted_arguments_may_be_named_parameters(call, form):
  task = read_row(contract(tools=FREE, reward_model={"ground_truth": form([call])}))
  assert [wanted.to_json() for wanted in task.calls] == CALL


@pytest.mark.parametrize(
  ("call", "problem"),
  [
    ({"name": "get_weather", "args": {"city": "Oslo"}}, "has 'args' and no \"arguments\""),
    ({"name": "get_weather", "argument": {}}, "has 'argument' and no \"arguments\""),
    ({"name": "get_weather", "arguments": {}, "parameters": {}}, "both"),
  ],
)
def test_wanted_arguments_under_another_name_are_an_error_and_not_none(call, problem):
  with pytest.raises(ValueError, match=problem):
    read_row(contract(tools=FREE, reward_model={"ground_truth": [call]}))


def test_a_wanted_call_may_leave_its_arguments_out():
  call = {"name": "get_weather", "type": "function", "id": "call_1"}
  assert (
    read_row(contract(tools=FREE, reward_model={"ground_truth": [call]})).calls[0].arguments == {}
  )


@pytest.mark.parametrize(
  "text", ["Sorry (really), I can't.", "[Sorry] I can't.", "Which city (Oslo)?", "f(x) is what?"]
)
def test_brackets_alone_make_no_call(text):
  task = read_row(contract(reward_model={"ground_truth": text}, extra_info=None))
  assert task.behavior == ("clarify" if "?" in text else "refuse")


@pytest.mark.parametrize(
  "accepted", [{"fly": {"city": ["Oslo"]}}, {"get_weather": {"city": "Oslo"}}, {"get_weather": []}]
)
def test_accepted_values_must_be_those_of_the_wanted_call(accepted):
  extra = {"possible_answers": [accepted]}
  with pytest.raises(ValueError, match=r"possible_answers.*get_weather.*accepted values"):
    read_row(contract(extra_info=extra))
  read_row(contract(extra_info={"possible_answers": [{"get_weather": {"city": ["Oslo", ""]}}]}))


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(PATHS), value=JSON)
def test_a_wrong_type_anywhere_is_an_error_and_never_a_crash(path, value):
  row = json.loads(json.dumps(contract()))
  place = row
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = value
  try:
    task = read_row(row)
  except ValueError:
    return
  # What is let through can be used.
  assert isinstance(task.request, str) and isinstance(task.id, str)
  assert all(tool.properties is not None and list(tool.required) is not None for tool in task.tools)


def test_keys_that_a_table_filled_with_nulls_are_dropped():
  row = {
    "tools": [{"properties": {"city": {"type": "string", "enum": None}, "days": None}}],
    "x": 0,
  }
  assert without_nulls(row) == {
    "tools": [{"properties": {"city": {"type": "string"}}}],
    "x": 0,
  }
