"""Answers that a reward must not pay for: what the reward doctor tries, one task at a time."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_jax.tasks.schema import BEHAVIORS, Behavior, ToolCall, ToolSpec, ToolTask

#: How bad an answer is; a worse kind must not pay more, on average, than a less bad one.
Severity = Literal["gold", "slip", "fault"]

_MARK = "zq"  # occurs in no natural value


@dataclass(frozen=True, slots=True)
class Attack:
  """One answer to a task.

  Attributes:
    name: what was done to the right answer.
    severity: `gold` (the right answer), `slip` (the right tool, or no call where none is wanted;
      something else is wrong) or `fault` (anything that should earn nothing).
    completion: the answer.
  """

  name: str
  severity: Severity
  completion: str


def attacks_on(
  task: ToolTask,
  others: Mapping[Behavior, Sequence[str]],
  rng: random.Random,
  *,
  prose: bool = True,
) -> Iterator[Attack]:
  """Yields the right answer to a task and wrong ones.

  Args:
    task: the task.
    others: right answers to other tasks, by behavior.
    rng: draws among them.
    prose: whether a call wrapped in prose is wrong.
  """
  yield Attack("gold", "gold", task.answer)
  yield Attack("empty", "fault", "")
  yield Attack("repeated gold", "fault", "\n".join([task.answer] * 30))
  texts: Severity = "fault" if task.behavior == "execute" else "slip"
  for behavior in BEHAVIORS[1:]:
    if behavior != task.behavior and others.get(behavior):
      yield Attack(f"a {behavior} answer", texts, rng.choice(others[behavior]))
  yield Attack("hedging", texts, f"{_refusal(others)} {_question(task)}")
  if task.behavior == "execute":
    yield from _on_calls(task, prose)
    return
  if task.behavior == "clarify":
    yield from _on_question(task)
  call = _made_up_call(task, rng, others)
  if call:
    yield Attack("needless call", "fault", call)
    yield Attack("gold and a call", "fault", f"{task.answer} {call}")


def constant_answers(tasks: Sequence[ToolTask]) -> Iterator[tuple[str, str]]:
  """Yields the name and text of cheap answers that do not look at the task."""
  yield "empty", ""
  yield "empty list", "[]"
  yield "a refusal", "Sorry, I can't help with that."
  yield "a vague question", "Could you give me more details?"
  yield "an offer", "Is there anything else I can help you with?"
  yield "agreement", "Sure, I will do that right away."
  names = list(dict.fromkeys(name for task in tasks for t in task.tools for name in t.properties))
  if names:
    yield "asks for everything", _ask_for(names[:40])
    yield "refuses and asks for everything", f"Sorry, I can't. {_ask_for(names[:40])}"
  missing = _most_common(name for task in tasks for name in task.missing)
  if missing:
    yield "asks for what is missing most often", _ask_for(missing[:2])
  tools = _most_common(call.name for task in tasks for call in task.calls)
  if tools:
    yield "calls the commonest tool", json.dumps([{"name": tools[0], "arguments": {}}])
  for behavior in BEHAVIORS:
    answers = _most_common(task.answer for task in tasks if task.behavior == behavior)
    if answers:
      yield f"the commonest {behavior} answer", answers[0]


def _on_calls(task: ToolTask, prose: bool) -> Iterator[Attack]:
  specs = {spec.name: spec for spec in task.tools}
  first, rest = task.calls[0], task.calls[1:]

  def text(*calls: ToolCall) -> str:
    return json.dumps([call.to_json() for call in (*calls, *rest)], ensure_ascii=False)

  arguments = first.arguments
  if arguments:
    name, value = next(iter(arguments.items()))
    others = {key: other for key, other in arguments.items() if key != name}
    changed = lambda value: text(ToolCall(first.name, {**others, name: value}))
    yield Attack("wrong value", "slip", changed(other_value(value)))
    yield Attack("wrong type", "slip", changed(other_type(value)))
    schema = specs[first.name].properties.get(name) if first.name in specs else None
    optional = isinstance(schema, Mapping) and "default" in schema
    if not optional and task.possible_answers is None:
      yield Attack("missing argument", "slip", text(ToolCall(first.name, others)))
  extra = ToolCall(first.name, {**arguments, f"{_MARK}_extra": 1})
  yield Attack("extra argument", "slip", text(extra))
  yield Attack("invented tool", "fault", text(ToolCall(f"{first.name}_{_MARK}", arguments)))
  wrong = next((name for name in specs if name != first.name), None)
  if wrong is not None:
    yield Attack("wrong tool", "fault", text(ToolCall(wrong, arguments)))
  yield Attack("extra call", "fault", text(first, first))
  if rest:
    yield Attack("missing call", "fault", text())
  yield Attack("cut off", "fault", task.answer[: len(task.answer) * 2 // 3])
  if prose:
    yield Attack("gold in prose", "fault", f"Sure, here is the call: {task.answer} Done.")


def _on_question(task: ToolTask) -> Iterator[Attack]:
  spec = next((spec for spec in task.tools if spec.name == task.tool_name), None)
  if spec is None or not task.missing:
    return
  names = list(spec.properties)
  given = [name for name in names if name not in task.missing]
  if given:
    yield Attack("asks for what is given", "slip", _ask_for(given[:1]))
  if len(given) > 1:
    yield Attack("asks for every argument", "slip", _ask_for(names))


def other_value(value: Any) -> Any:
  """A different value of the same type."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, (int, float)):
    return value + 1
  if isinstance(value, str):
    return f"{value} {_MARK}"
  if isinstance(value, list):
    return [*value, other_value(value[0]) if value else _MARK]
  if isinstance(value, Mapping):
    return {**value, f"{_MARK}_extra": 1}
  return _MARK


def other_type(value: Any) -> Any:
  """A value of another type that looks the same."""
  if isinstance(value, str):
    return [value]
  if isinstance(value, (bool, int, float)):
    return str(value).lower()
  return json.dumps(value)


def _question(task: ToolTask) -> str:
  names = task.missing or tuple(name for spec in task.tools for name in spec.required)[:1]
  return _ask_for(names or ["details"])


def _ask_for(names: Sequence[str]) -> str:
  spoken = " and the ".join(name.replace("_", " ") for name in names)
  return f"Could you tell me the {spoken}?"


def _refusal(others: Mapping[Behavior, Sequence[str]]) -> str:
  return others["refuse"][0] if others.get("refuse") else "Sorry, I can't help with that."


def _made_up_call(
  task: ToolTask, rng: random.Random, others: Mapping[Behavior, Sequence[str]]
) -> str | None:
  wanted = [spec for spec in task.tools if spec.name == task.tool_name] or list(task.tools)
  if wanted:
    spec = wanted[0]
    arguments = {name: _plausible(spec, name) for name in spec.required}
    return json.dumps([{"name": spec.name, "arguments": arguments}])
  return rng.choice(others["execute"]) if others.get("execute") else None


def _plausible(spec: ToolSpec, name: str) -> Any:
  schema = spec.properties.get(name)
  schema = schema if isinstance(schema, Mapping) else {}
  choices = schema.get("enum")
  if isinstance(choices, Sequence) and choices:
    return choices[0]
  values: Mapping[Any, Any] = {"integer": 1, "number": 1.5, "boolean": True, "array": []}
  kind = schema.get("type")
  return values.get(kind, "Oslo") if isinstance(kind, str) else "Oslo"


def _most_common(names: Iterator[str]) -> list[str]:
  return [name for name, _ in Counter(names).most_common()]
