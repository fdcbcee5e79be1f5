"""Compares the calls of a completion with the wanted ones, argument by argument."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.rewards.values import default_of, equal_values
from grpo_jax.schema import ToolCall, ToolSpec, ToolTask


@dataclass(frozen=True, slots=True)
class CallComparison:
  """How the calls of a completion compare with the wanted ones.

  Attributes:
    error: None when they are equal, or a code of `breakdown.ERRORS`.
    tools_right: every wanted tool is called as often as wanted, and nothing else is.
    right: arguments that are right, over all wanted calls.
    total: arguments that are wanted, or given without being wanted.
    wrong_arguments: names of the arguments that are wrong, missing or extra.
  """

  error: str | None
  tools_right: bool
  right: int
  total: int
  wrong_arguments: tuple[str, ...]

  @property
  def share(self) -> float:
    """The share of right arguments; a call without arguments is right or not."""
    if self.error is None:
      return 1.0
    return self.right / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class ArgumentComparison:
  """The arguments of one call against those of one wanted call, as lists of names."""

  right: tuple[str, ...] = ()
  wrong: tuple[str, ...] = ()
  missing: tuple[str, ...] = ()
  extra: tuple[str, ...] = ()

  @property
  def total(self) -> int:
    """How many arguments there are to get right."""
    return len(self.right) + len(self.wrong) + len(self.missing) + len(self.extra)


def compare_calls(
  given: Sequence[ToolCall], task: ToolTask, *, ordered: bool = False
) -> CallComparison:
  """Compares calls with the wanted calls of a task.

  Args:
    given: the calls of the completion, at least one.
    task: a task that wants calls.
    ordered: whether the calls must come in the wanted order.
  """
  error = _tool_error(given, task, ordered)
  wanted_arguments = sum(len(call.arguments) for call in task.calls)
  if error is not None:
    return CallComparison(error, False, 0, wanted_arguments, ())
  specs = {spec.name: spec for spec in task.tools}
  pairs = [
    compare_arguments(call, task.calls[index], specs.get(call.name))
    for call, index in _paired(given, task, specs, ordered)
  ]
  error = next(
    (
      code
      for code, field in (
        ("wrong_argument", "wrong"),
        ("missing_argument", "missing"),
        ("extra_argument", "extra"),
      )
      if any(getattr(pair, field) for pair in pairs)
    ),
    None,
  )
  return CallComparison(
    error,
    True,
    sum(len(pair.right) for pair in pairs),
    sum(pair.total for pair in pairs),
    tuple(dict.fromkeys(n for pair in pairs for n in pair.wrong + pair.missing + pair.extra)),
  )


def compare_arguments(
  given: ToolCall, wanted: ToolCall, spec: ToolSpec | None
) -> ArgumentComparison:
  """Compares the arguments of one call with the wanted ones.

  An argument that is left out equals its schema's `default`, on either side.
  """
  root = spec.parameters if spec is not None else None
  properties: Mapping[str, Any] = spec.properties if spec is not None else {}
  sorted_names: dict[str, list[str]] = {"right": [], "wrong": [], "missing": [], "extra": []}
  for name, value in wanted.arguments.items():
    schema = properties.get(name)
    if name in given.arguments:
      same = equal_values(given.arguments[name], value, schema, root)
      sorted_names["right" if same else "wrong"].append(name)
    else:
      same = equal_values(default_of(schema, root), value, schema, root)
      sorted_names["right" if same else "missing"].append(name)
  for name, value in given.arguments.items():
    if name not in wanted.arguments:
      schema = properties.get(name)
      if not equal_values(value, default_of(schema, root), schema, root):
        sorted_names["extra"].append(name)
  return ArgumentComparison(**{key: tuple(names) for key, names in sorted_names.items()})


def _tool_error(given: Sequence[ToolCall], task: ToolTask, ordered: bool) -> str | None:
  names = [call.name for call in given]
  wanted_names = [call.name for call in task.calls]
  if names == wanted_names:
    return None
  offered = {spec.name for spec in task.tools}
  wanted, shown = Counter(wanted_names), Counter(names)
  if offered and any(name not in offered and name not in wanted for name in shown):
    return "invented_tool"
  if shown == wanted:
    return "wrong_order" if ordered else None
  extra, missing = shown - wanted, wanted - shown
  if extra and missing:
    return "wrong_tool"
  return "extra_call" if extra else "missing_call"


def _paired(
  given: Sequence[ToolCall], task: ToolTask, specs: Mapping[str, ToolSpec], ordered: bool
) -> list[tuple[ToolCall, int]]:
  """Pairs each call with the index of the wanted call that it stands for."""
  if ordered or len(given) == 1:
    return list(zip(given, range(len(given)), strict=True))
  pairs = []
  free = list(range(len(task.calls)))
  for call in given:
    same_name = [index for index in free if task.calls[index].name == call.name]
    index = max(
      same_name,
      key=lambda i: len(compare_arguments(call, task.calls[i], specs.get(call.name)).right),
    )
    free.remove(index)
    pairs.append((call, index))
  return pairs
