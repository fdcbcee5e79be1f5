"""Compares the calls of a completion with the wanted ones, argument by argument."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class ArgumentComparison:
  """The arguments of one call against those of one wanted call, as lists of names."""

  right: list[str] = field(default_factory=list)
  wrong: list[str] = field(default_factory=list)
  missing: list[str] = field(default_factory=list)
  extra: list[str] = field(default_factory=list)

  @property
  def faults(self) -> list[str]:
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
  total = right + sum(len(pair.faults) for pair in pairs)
  return CallComparison(_argument_error(pairs), True, right, total, faults)


def compare_arguments(given: ToolCall, wanted: ToolCall, spec: ToolSpec) -> ArgumentComparison:
  """Compares the arguments of one call with the wanted ones, by type and value.

  An argument that is left out equals its schema's `default`, on either side.
  """
  found = ArgumentComparison()
  for name in dict.fromkeys((*wanted.arguments, *given.arguments)):
    schema = spec.properties.get(name)
    default = default_of(schema, spec.parameters)
    one, other = given.arguments.get(name, default), wanted.arguments.get(name, default)
    if equal_values(one, other, schema, spec.parameters):
      if name in wanted.arguments:
        found.right.append(name)
    elif name not in given.arguments:
      found.missing.append(name)
    elif name not in wanted.arguments:
      found.extra.append(name)
    else:
      found.wrong.append(name)
  return found


def compare_with_accepted(
  given: ToolCall, accepted: Mapping[str, Any], spec: ToolSpec
) -> ArgumentComparison:
  """Compares the arguments of one call with accepted values, as the Berkeley leaderboard does.

  An argument that the schema requires must be given even if `""` is among its accepted values.
  """
  found = ArgumentComparison()
  for name, options in accepted.items():
    if name in given.arguments:
      listed = isinstance(options, (list, tuple))
      same = listed and is_accepted(given.arguments[name], options, spec.properties.get(name))
      (found.right if same else found.wrong).append(name)
    else:
      same = name not in spec.required and may_be_left_out(options)
      (found.right if same else found.missing).append(name)
  for name in spec.required:
    if name not in accepted and name not in given.arguments:
      found.missing.append(name)
  for name in given.arguments:
    if name not in accepted or (spec.properties and name not in spec.properties):
      found.extra.append(name)
  return found


def _compare(
  given: ToolCall, task: ToolTask, index: int, specs: Mapping[str, ToolSpec]
) -> ArgumentComparison:
  spec = specs.get(given.name) or ToolSpec(given.name)
  if task.possible_answers is not None:
    accepted = task.possible_answers[index].get(given.name)
    if isinstance(accepted, Mapping):
      return compare_with_accepted(given, accepted, spec)
  return compare_arguments(given, task.calls[index], spec)


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
