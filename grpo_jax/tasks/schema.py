"""What a tool-calling task is: tools, calls and the wanted behavior. No jax, no disk."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from grpo_jax.files.json_text import decoded, read_json

Behavior = Literal["execute", "clarify", "refuse"]
BEHAVIORS: tuple[Behavior, ...] = get_args(Behavior)
#: The keys of a call in the formats of all model families; `parameters` is Llama 3's name for
#: `arguments`.
CALL_KEYS = frozenset(("name", "arguments", "parameters", "id", "type", "index"))

_OPENING = re.compile(r"[{\[]")
_DECODER = json.JSONDecoder()
_MAX_REFERENCES = 8


def function_of(value: Any) -> Any:
  """What the envelope `{"type": "function", "function": ...}` holds; else the value itself."""
  inner = value.get("function") if isinstance(value, Mapping) else None
  return inner if isinstance(inner, Mapping) else value


@dataclass(frozen=True)
class ToolSpec:
  """One callable tool, as its JSON schema describes it.

  Attributes:
    name: the tool's name, matched exactly.
    description: free text shown to the model.
    parameters: a JSON schema of type `object` (`properties`, `required`).
    given: the tool as it was read: templates show its own key order and further keys.
  """

  name: str
  description: str = ""
  parameters: Mapping[str, Any] = field(default_factory=dict)
  given: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

  @property
  def properties(self) -> Mapping[str, Any]:
    """The schema of each argument, by name."""
    properties = self.parameters.get("properties")
    return properties if isinstance(properties, Mapping) else {}

  @property
  def required(self) -> tuple[str, ...]:
    """The names of the arguments that a call must give."""
    return tuple(self.parameters.get("required") or ())

  def to_json(self) -> dict[str, Any]:
    """Returns the function object without the `{"type": "function"}` envelope."""
    parameters = dict(self.parameters)
    return {"name": self.name, "description": self.description, "parameters": parameters}

  def to_chat(self) -> dict[str, Any]:
    """Returns the tool in its envelope for a chat template, exactly as it was given."""
    given = self.to_json() if self.given is None else dict(self.given)
    return given if "function" in given else {"type": "function", "function": given}

  @classmethod
  def from_json(cls, value: Any) -> Self:
    """Reads a tool with or without the `{"type": "function", "function": ...}` envelope.

    Raises:
      ValueError: `value` is not a tool; the message says what is missing.
    """
    given, value = value, function_of(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
      raise ValueError('a tool is an object with a "name" and "parameters" (a JSON schema)')
    for other in ("input_schema", "inputSchema", "arguments", "args"):
      if other in value and "parameters" not in value:  # else a tool without any argument
        raise ValueError(f'tool {value["name"]!r} has {other!r}; expected "parameters"')
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, Mapping):
      raise ValueError(f'tool {value["name"]!r}: "parameters" must be a JSON schema object')
    return cls(value["name"], str(value.get("description") or ""), parameters, given)


@dataclass(frozen=True)
class ToolCall:
  """One call of a tool: its name and its arguments as JSON values."""

  name: str
  arguments: Mapping[str, Any] = field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """Returns `{"name": ..., "arguments": {...}}`."""
    return {"name": self.name, "arguments": dict(self.arguments)}


@dataclass(frozen=True)
class ToolTask:
  """One prompt and what the right answer to it is.

  Attributes:
    messages: the chat so far, as role/content mappings.
    behavior: what the answer must do.
    calls: the wanted calls (empty unless `behavior` is `execute`).
    answer: a right answer as text; for `execute` it is the JSON list of `calls`.
    tools: the tools on offer, whether they came in `tools` or in the system message.
    native_tools: True when the chat template is to render `tools`; False when the system message
      already holds them.
    missing: required arguments that the request does not give (`clarify` only).
    possible_answers: the Berkeley leaderboard's accepted values, one mapping per wanted call, or
      None for exact comparison.
    extra: the whole `extra_info` of the row.
    data_source: the row's `data_source`, kept for rewards that were written for verl.
  """

  messages: tuple[Mapping[str, Any], ...]
  behavior: Behavior
  calls: tuple[ToolCall, ...] = ()
  answer: str = ""
  tools: tuple[ToolSpec, ...] = ()
  native_tools: bool = False
  missing: tuple[str, ...] = ()
  possible_answers: tuple[Mapping[str, Mapping[str, Sequence[Any]]], ...] | None = None
  extra: Mapping[str, Any] = field(default_factory=dict)
  data_source: str = ""

  @property
  def id(self) -> str:
    """The row's own id, or the empty string."""
    return str(self.extra.get("id", ""))

  @property
  def tool_name(self) -> str:
    """The tool that this task is about (for scores per tool); may be the empty string."""
    return str(self.extra.get("tool") or (self.calls[0].name if self.calls else ""))

  @property
  def request(self) -> str:
    """The last user message."""
    spoken = (m.get("content") for m in reversed(self.messages) if m.get("role") == "user")
    return str(next(spoken, "") or "")

  @classmethod
  def from_row(cls, row: Mapping[str, Any]) -> Self:
    """Reads one row of the JSONL data contract.

    Args:
      row: a mapping with `prompt` and `reward_model.ground_truth`, and optionally `tools`,
        `extra_info` and `data_source`. `tools`, `ground_truth` and `extra_info` may also be JSON
        text (parquet files often hold them so).

    Raises:
      ValueError: one sentence saying what is wrong and what was expected.
    """
    messages = _messages(row.get("prompt"))
    reward_model = decoded(row.get("reward_model"), "reward_model")
    if not isinstance(reward_model, Mapping) or "ground_truth" not in reward_model:
      raise ValueError('"reward_model" must be an object with "ground_truth"')
    extra = decoded(row.get("extra_info"), "extra_info") or {}
    if not isinstance(extra, Mapping):
      raise ValueError('"extra_info" must be an object')
    native = decoded(row.get("tools"), "tools") or ()
    if not isinstance(native, (list, tuple)):
      raise ValueError('"tools" must be a list of tool schemas')
    tools = tuple(ToolSpec.from_json(decoded(tool, "tools")) for tool in native)

    calls, text = read_ground_truth(reward_model["ground_truth"])
    likely = "execute" if calls else "clarify" if "?" in text else "refuse"
    behavior = likely if extra.get("behavior") is None else extra["behavior"]
    if behavior not in BEHAVIORS:
      raise ValueError(
        f'"extra_info.behavior" is {behavior!r}; expected one of {", ".join(BEHAVIORS)}'
      )
    if behavior == "execute" and not calls:
      raise ValueError('behavior "execute" needs a ground_truth that is a JSON list of calls')
    if behavior != "execute" and calls:
      raise ValueError(f"behavior {behavior!r} needs a ground_truth that is text, not calls")
    accepted = decoded(extra.get("possible_answers"), "extra_info.possible_answers")
    listed = isinstance(accepted, (list, tuple)) and len(accepted) == len(calls)
    if accepted is not None and not (listed and all(isinstance(a, Mapping) for a in accepted)):
      raise ValueError('"extra_info.possible_answers" must be a list with one object a wanted call')
    return cls(
      messages=messages,
      behavior=behavior,
      calls=calls,
      answer=json.dumps([c.to_json() for c in calls], ensure_ascii=False) if calls else text,
      tools=tools or tools_in_text(_system_text(messages)),
      native_tools=bool(tools),
      missing=tuple(str(name) for name in extra.get("missing") or ()),
      possible_answers=None if accepted is None else tuple(accepted),
      extra=extra,
      data_source=str(row.get("data_source") or ""),
    )


def resolve(schema: Any, root: Any) -> Mapping[str, Any]:
  """Follows local `$ref`s; an unusable schema becomes the empty one, which allows any value."""
  for _ in range(_MAX_REFERENCES):
    if not isinstance(schema, Mapping):
      return {}
    reference = schema.get("$ref")
    if not isinstance(reference, str):
      return schema
    schema = root if reference.startswith("#") else None
    for part in reference.split("/")[1:]:
      schema = schema.get(part) if isinstance(schema, Mapping) else None
  return {}


def read_ground_truth(value: Any) -> tuple[tuple[ToolCall, ...], str]:
  """Splits a ground truth into calls and text; exactly one of the two is non-empty.

  Args:
    value: a list of calls, the same as JSON text, or plain text. A call's `arguments` may be JSON
      text, and may be named `parameters`.

  Raises:
    ValueError: the value is empty, or looks like calls and is malformed.
  """
  truth = value
  if isinstance(value, str):
    stripped = value.strip()
    truth = decoded(stripped, "ground_truth") if stripped[:1] in ("[", "{") else stripped
    if stripped[:2] in ("[{", '{"') and isinstance(truth, str):
      raise ValueError("ground_truth looks like JSON but does not parse")
  if isinstance(truth, Mapping):
    truth = [truth]
  if isinstance(truth, str) and truth:
    return (), truth
  if isinstance(truth, (list, tuple)) and truth:
    return tuple(_call(entry) for entry in truth), ""
  raise ValueError("ground_truth must be a non-empty list of calls, its JSON text, or plain text")


def tools_in_text(text: str) -> tuple[ToolSpec, ...]:
  """Finds the tool schemas that a system message holds as JSON objects or lists of them.

  Raises:
    ValueError: a schema could mean two things, such as one with a key twice.
  """
  found: list[ToolSpec] = []
  position = 0
  while match := _OPENING.search(text, position):
    try:
      value, position = _DECODER.raw_decode(text, match.start())
    except (ValueError, RecursionError):
      position = match.end()
      continue
    entries = [function_of(entry) for entry in (value if isinstance(value, list) else [value])]
    specs = [
      ToolSpec.from_json(entry)
      for entry in entries
      if isinstance(entry, dict) and isinstance(entry.get("name"), str) and "parameters" in entry
    ]
    if specs:  # other JSON in a message is only text
      try:
        read_json(text[match.start() : position])
      except ValueError as error:
        raise ValueError(f"the tool schemas in the system message: {error}") from error
    found += specs
  return tuple(found)


def _call(entry: Any) -> ToolCall:
  entry = function_of(entry)
  expected = 'each wanted call must be {"name": text, "arguments": object}'
  if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
    raise ValueError(expected)
  if "arguments" in entry and "parameters" in entry:
    raise ValueError(f'{expected}, but {entry["name"]!r} has both "arguments" and "parameters"')
  if "arguments" not in entry and (others := [key for key in entry if key not in CALL_KEYS]):
    # They are probably the arguments: a call without any would pay for leaving them out.
    raise ValueError(f'{expected}, but {entry["name"]!r} has {others[0]!r} and no "arguments"')
  arguments = decoded(entry.get("arguments", entry.get("parameters", {})), "arguments")
  if not isinstance(arguments, Mapping):
    raise ValueError(expected)
  return ToolCall(entry["name"], arguments)


def _messages(value: Any) -> tuple[Mapping[str, Any], ...]:
  if isinstance(value, str) and value:
    return ({"role": "user", "content": value},)
  if not isinstance(value, (list, tuple)) or not value:
    raise ValueError('"prompt" must be a non-empty list of {"role", "content"} messages')
  for message in value:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
      raise ValueError('each message in "prompt" must be an object with "role" and "content"')
  return tuple(value)


def _system_text(messages: Sequence[Mapping[str, Any]]) -> str:
  return "\n".join(str(m.get("content") or "") for m in messages if m["role"] == "system")
