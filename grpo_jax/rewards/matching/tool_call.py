"""Compares the calls of a completion with the wanted ones, argument by argument."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.rewards.matching.possible_answers import is_accepted, may_be_left_out
from grpo_jax.rewards.matching.values import default_of, equal_values
from grpo_jax.tasks.schema import ToolCall, ToolSpec, ToolTask


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
  wrong_arguments: tuple[str, ...] = ()

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
  def faults(self) -> tuple[str, ...]:
    """The names of all arguments that are not right."""
    return self.wrong + self.missing + self.extra


def compare_calls(
  given: Sequence[ToolCall], task: ToolTask, *, ordered: bool = False
) -> CallComparison:
  """Compares calls with the wanted calls of a task.

  Parallel calls of one tool are paired so that as many as possible are entirely right, and then so
  that as many arguments as possible are.

  Args:
    given: the calls of the completion, at least one.
    task: a task that wants calls.
    ordered: whether the calls must come in the wanted order.
  """
  error = _tool_error(given, task, ordered)
  if error is not None:
    return CallComparison(error, False, 0, sum(len(call.arguments) for call in task.calls))
  specs = {spec.name: spec for spec in task.tools}
  pairs = _best_pairs(given, task, specs, ordered)
  right = sum(len(pair.right) for pair in pairs)
  faults = tuple(dict.fromkeys(name for pair in pairs for name in pair.faults))
  return CallComparison(_argument_error(pairs), True, right, right + _count(pairs), faults)


def compare_arguments(
  given: ToolCall, wanted: ToolCall, spec: ToolSpec | None
) -> ArgumentComparison:
  """Compares the arguments of one call with the wanted ones, by type and value.

  An argument that is left out equals its schema's `default`, on either side.
  """
  root = spec.parameters if spec is not None else None
  properties: Mapping[str, Any] = spec.properties if spec is not None else {}
  names: dict[str, list[str]] = {"right": [], "wrong": [], "missing": [], "extra": []}
  for name, value in wanted.arguments.items():
    schema = properties.get(name)
    if name in given.arguments:
      same = equal_values(given.arguments[name], value, schema, root)
      names["right" if same else "wrong"].append(name)
    else:
      same = equal_values(default_of(schema, root), value, schema, root)
      names["right" if same else "missing"].append(name)
  for name, value in given.arguments.items():
    if name not in wanted.arguments:
      schema = properties.get(name)
      # Without a schema there is no default; thousands of made-up names must cost little.
      if schema is None or not equal_values(value, default_of(schema, root), schema, root):
        names["extra"].append(name)
  return ArgumentComparison(**{key: tuple(found) for key, found in names.items()})


def compare_with_accepted(
  given: ToolCall, accepted: Mapping[str, Any], spec: ToolSpec | None
) -> ArgumentComparison:
  """Compares the arguments of one call with accepted values, as the Berkeley leaderboard does.

  An argument that the schema requires must be given even if `""` is among its accepted values.
  """
  properties: Mapping[str, Any] = spec.properties if spec is not None else {}
  required = spec.required if spec is not None else ()
  names: dict[str, list[str]] = {"right": [], "wrong": [], "missing": [], "extra": []}
  for name, options in accepted.items():
    if name in given.arguments:
      listed = isinstance(options, (list, tuple))
      same = listed and is_accepted(given.arguments[name], options, properties.get(name))
      names["right" if same else "wrong"].append(name)
    else:
      same = name not in required and may_be_left_out(options)
      names["right" if same else "missing"].append(name)
  names["missing"].extend(n for n in required if n not in accepted and n not in given.arguments)
  names["extra"].extend(
    name
    for name in given.arguments
    if name not in accepted or (properties and name not in properties)
  )
  return ArgumentComparison(**{key: tuple(found) for key, found in names.items()})


def _compare(
  given: ToolCall, task: ToolTask, index: int, specs: Mapping[str, ToolSpec]
) -> ArgumentComparison:
  spec = specs.get(given.name)
  if task.possible_answers is not None:
    accepted = task.possible_answers[index].get(given.name)
    if isinstance(accepted, Mapping):
      return compare_with_accepted(given, accepted, spec)
  return compare_arguments(given, task.calls[index], spec)


def _count(pairs: Sequence[ArgumentComparison]) -> int:
  return sum(len(pair.faults) for pair in pairs)


def _argument_error(pairs: Sequence[ArgumentComparison]) -> str | None:
  if any(pair.wrong for pair in pairs):
    return "wrong_argument"
  if any(pair.missing for pair in pairs):
    return "missing_argument"
  return "extra_argument" if any(pair.extra for pair in pairs) else None


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


def _best_pairs(
  given: Sequence[ToolCall], task: ToolTask, specs: Mapping[str, ToolSpec], ordered: bool
) -> list[ArgumentComparison]:
  """Compares each call with the wanted call that it stands for."""
  wanted = task.calls
  if ordered or len(given) == 1:
    return [_compare(call, task, index, specs) for index, call in enumerate(given)]
  pairs: list[ArgumentComparison] = []
  for name in dict.fromkeys(call.name for call in given):
    mine = [call for call in given if call.name == name]
    theirs = [index for index, call in enumerate(wanted) if call.name == name]
    grid = [[_compare(call, task, index, specs) for index in theirs] for call in mine]
    pairs.extend(_best_of(grid))
  return pairs


def _best_of(grid: list[list[ArgumentComparison]]) -> list[ArgumentComparison]:
  if len(grid) == 1:
    return grid[0]
  from scipy.optimize import linear_sum_assignment  # half of the time that a worker starts in

  most = 1 + sum(max(len(pair.right) for pair in row) for row in grid)
  gain = [[len(pair.right) + most * (not pair.faults) for pair in row] for row in grid]
  rows, columns = linear_sum_assignment(gain, maximize=True)
  return [grid[row][column] for row, column in zip(rows, columns, strict=True)]
