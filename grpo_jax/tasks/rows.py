"""Rows of other formats as tool tasks, with everything that can be wrong with a row found early."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.files.json_text import decoded
from grpo_jax.tasks.schema import ToolSpec, ToolTask, function_of

ROLES = ("system", "user", "assistant", "tool")
# What the reader takes from `extra_info` alone: beside it, it would be dropped in silence.
_IN_EXTRA_INFO = ("behavior", "missing", "possible_answers")

# Calls in another form than the contract's list. As text they would count as a refusal, and the
# policy would learn to decline what it should do.
_CALL_AS_TEXT = re.compile(
  r"""\s*(?:\[\s*[\[{"']|\{\s*["']|\[?\s*[A-Za-z_][\w.]*\([^\s()]*=.*\)\s*\]?\s*$)"""
  r"""|.*(?:<tool_call>|<\|python_tag\||"(?:arguments|parameters)"\s*:)""",
  re.DOTALL,
)


def read_row(row: Any) -> ToolTask:
  """Reads one row of the data contract, of SageMaker AI or verl (the same form), or an OpenAI chat.

  An OpenAI chat row holds `messages` and usually `tools`. Its last assistant message with
  `tool_calls` is the ground truth, or if there is none its last assistant message; the messages
  before it are the prompt and those after it are not used.

  Raises:
    ValueError: one sentence saying what is wrong and what was expected.
  """
  if not isinstance(row, Mapping):
    raise ValueError(f"expected an object (one task), got {_kind(row)}")
  for name in _IN_EXTRA_INFO:
    if row.get(name) is not None:
      raise ValueError(f'"{name}" belongs in "extra_info", not beside it')
  if row.get("functions") is not None and row.get("tools") is None:
    raise ValueError('got "functions"; expected "tools", a list of tool schemas')
  if "prompt" in row:
    contract = dict(row)
    contract["prompt"] = _decoded_list(row["prompt"], "prompt")
  elif "messages" in row:
    contract = _contract_of_chat(row)
  else:
    raise ValueError(
      'expected "prompt" and "reward_model", or "messages" (an OpenAI chat); '
      f"got the keys {', '.join(map(repr, list(row)[:8])) or '(none)'}"
    )
  _check_extra_info(contract.get("extra_info"))
  contract["prompt"] = _messages(contract["prompt"])
  task = ToolTask.from_row(contract)
  _check_tools(task.tools)
  _check_answer(task)
  return task


def without_nulls(value: Any) -> Any:
  """Drops keys whose value is null: tables give every object the keys of all others."""
  if isinstance(value, Mapping):
    return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
  if isinstance(value, (list, tuple)):
    return [without_nulls(entry) for entry in value]
  return value


def _contract_of_chat(row: Mapping[str, Any]) -> dict[str, Any]:
  for name in ("reward_model", "ground_truth"):
    if row.get(name) is not None:  # which of the two is the wanted answer would be a guess
      raise ValueError(
        f'got "messages" and "{name}"; expected "prompt" and "reward_model", or "messages" alone, '
        "whose last answer is the ground truth"
      )
  messages = _decoded_list(row["messages"], "messages")
  if not isinstance(messages, list):
    raise ValueError(f'"messages" must be a list of messages, got {_kind(messages)}')
  spoken = [
    (bool(message.get("tool_calls")), i)
    for i, message in enumerate(messages)
    if isinstance(message, Mapping) and message.get("role") == "assistant"
  ]
  if not spoken:
    raise ValueError('"messages" has no assistant message to take the ground truth from')
  calls, target = max(spoken)
  answer, where = messages[target], f"messages[{target}]"
  if calls:
    ground_truth: Any = _functions(answer["tool_calls"], where)
  else:
    _check_no_function_call(answer, where)
    ground_truth = _text(answer.get("content"), where)
  contract = {
    "prompt": messages[:target],
    "tools": row.get("tools"),
    "reward_model": {"style": "rule", "ground_truth": ground_truth},
    "extra_info": decoded(row.get("extra_info"), "extra_info") or {},
    "data_source": row.get("data_source"),
  }
  if "id" in row and isinstance(contract["extra_info"], Mapping):
    contract["extra_info"] = {"id": row["id"], **contract["extra_info"]}
  return contract


def _messages(value: Any) -> Any:
  if isinstance(value, str):
    return value  # one user message
  if not isinstance(value, list) or not value:
    raise ValueError(
      f'"prompt" must be a non-empty list of {{"role", "content"}} messages, got {_kind(value)}'
    )
  messages = []
  for i, message in enumerate(value):
    where = f"message {i} of the prompt"
    if not isinstance(message, Mapping):
      raise ValueError(f'{where} must be an object with "role" and "content", got {_kind(message)}')
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ROLES:
      raise ValueError(f"{where} has the role {role!r}; expected one of {', '.join(ROLES)}")
    _check_no_function_call(message, where)
    calls = message.get("tool_calls")
    content = message.get("content")
    read = {**message, "role": role}
    read["content"] = "" if calls and content is None else _text(content, where)
    if calls:  # templates render arguments as JSON: they must be objects, not JSON text
      read["tool_calls"] = [
        {"type": "function", "function": call} for call in _functions(calls, where)
      ]
    messages.append(read)
  if all(message["role"] != "user" for message in messages):
    raise ValueError("the prompt has no user message")
  if messages[-1]["role"] not in ("user", "tool"):
    raise ValueError(
      f"the prompt ends with a message of role {messages[-1]['role']!r}; expected user or tool"
    )
  return messages


def _check_no_function_call(message: Mapping[str, Any], where: str) -> None:
  """The older form of `tool_calls` would leave only the words beside it."""
  if message.get("function_call"):
    raise ValueError(f'{where} has "function_call"; expected "tool_calls"')


def _text(content: Any, where: str) -> str:
  """A message's content, which OpenAI chats may hold as a list of text parts."""
  if isinstance(content, list) and content:
    texts = [part.get("text") for part in content if isinstance(part, Mapping)]
    parts = [text for text in texts if isinstance(text, str)]
    if len(parts) < len(content):
      raise ValueError(f"{where} has content parts that are not text")
    return "".join(parts)
  if not isinstance(content, str):
    raise ValueError(f'{where} needs "content" as text, got {_kind(content)}')
  return content


def _functions(calls: Any, where: str) -> list[dict[str, Any]]:
  """The functions of `tool_calls`, their arguments as objects."""
  if not isinstance(calls, list):
    raise ValueError(f'"tool_calls" of {where} must be a list, got {_kind(calls)}')
  functions = []
  for call in calls:
    function = function_of(call)
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
      arguments = decoded(arguments or "{}", "arguments")
    if not isinstance(arguments, Mapping) or not isinstance(function.get("name"), str):
      raise ValueError(
        f'each of "tool_calls" of {where} needs a "function" with "name" and object "arguments"'
      )
    functions.append({"name": function["name"], "arguments": arguments})
  return functions


def _check_extra_info(value: Any) -> None:
  extra = decoded(value, "extra_info")
  if not isinstance(extra, Mapping):
    return  # absent, or ToolTask says what is wrong
  if not isinstance(extra.get("id", ""), (str, int)) or isinstance(extra.get("id"), bool):
    raise ValueError(f'"extra_info.id" must be text or an integer, got {_kind(extra["id"])}')
  missing = extra.get("missing")
  if missing is not None and not _is_names(missing):
    raise ValueError(f'"extra_info.missing" must be a list of argument names, got {_kind(missing)}')


def _check_tools(tools: Sequence[ToolSpec]) -> None:
  for tool in tools:
    if sum(tool.name == other.name for other in tools) > 1:
      raise ValueError(f"tool {tool.name!r} is on offer twice; expected one schema a name")
    if _bare_arguments(tool.parameters):
      raise ValueError(
        f'tool {tool.name!r}: "parameters" must be a JSON schema, with the arguments in its '
        '"properties"'
      )
    properties = tool.parameters.get("properties", {})
    if not isinstance(properties, Mapping) or not all(
      isinstance(schema, Mapping) for schema in properties.values()
    ):
      raise ValueError(f'tool {tool.name!r}: "properties" must be an object of argument schemas')
    required = tool.parameters.get("required") or []
    if not _is_names(required):
      raise ValueError(f'tool {tool.name!r}: "required" must be a list of argument names')
    for name in required:
      if name not in properties:
        raise ValueError(f'tool {tool.name!r}: required argument {name!r} is not in "properties"')


def _is_names(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _bare_arguments(parameters: Mapping[str, Any]) -> bool:
  """Whether argument schemas stand where the schema of the object of arguments is expected."""
  return (
    bool(parameters)
    and not {"properties", "additionalProperties"} & parameters.keys()
    and all(isinstance(entry, Mapping) and "type" in entry for entry in parameters.values())
  )


def _check_answer(task: ToolTask) -> None:
  """A wanted call of a tool that is not on offer, or without a required argument, is a mistake."""
  if not task.calls and _CALL_AS_TEXT.match(task.answer):
    raise ValueError(
      "the ground truth is text but looks like a call; expected a JSON list of "
      '{"name": text, "arguments": object}'
    )
  for call, accepted in zip(task.calls, task.possible_answers or (), strict=False):
    options = accepted.get(call.name)
    if not isinstance(options, Mapping) or not all(isinstance(o, list) for o in options.values()):
      raise ValueError(
        '"extra_info.possible_answers" must hold an object of the form '
        f'{{"{call.name}": {{argument: [accepted values]}}}} where that call is wanted'
      )
  for call in task.calls:
    try:
      json.dumps(call.to_json(), allow_nan=False)
    except (TypeError, ValueError) as error:
      raise ValueError(f"an argument of {call.name!r} is no JSON value: {error}") from error
  offered = {tool.name: tool for tool in task.tools}
  if not offered:
    return  # the system message describes its tools in words
  for call in task.calls:
    if call.name not in offered:
      raise ValueError(
        f"the ground truth calls {call.name!r}, which is not among the tools on offer: "
        f"{', '.join(offered)}"
      )
    for name in offered[call.name].required:
      if name not in call.arguments:
        raise ValueError(f"the ground truth calls {call.name!r} without its required {name!r}")
  if task.missing and task.behavior != "clarify":
    raise ValueError(f'"extra_info.missing" is for clarify tasks, but this one is {task.behavior}')
  known = {name for tool in task.tools for name in tool.properties}
  for name in task.missing:
    if name not in known:
      raise ValueError(f'"extra_info.missing" names {name!r}, an argument of no tool on offer')


def _decoded_list(value: Any, name: str) -> Any:
  """A list that a table holds as JSON text; other text is left as it is."""
  if not isinstance(value, str) or not value.lstrip().startswith("["):
    return value
  read = decoded(value, name)
  return read if isinstance(read, list) else value


def _kind(value: Any) -> str:
  """What a JSON value is, for messages."""
  names = {type(None): "null", bool: "a boolean", str: "text", list: "a list", tuple: "a list"}
  return names.get(type(value), "an object" if isinstance(value, Mapping) else "a number")
