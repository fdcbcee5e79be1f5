"""Attacks a reward before a policy does: what a wrong or lazy answer earns, task by task."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean

from grpo_jax.rewards.attacks import Attack, Severity, attacks_on, constant_answers
from grpo_jax.rewards.batch import Reward
from grpo_jax.tasks.schema import BEHAVIORS, Behavior, ToolTask

#: A cheap answer that never looks at the task must not earn more than this share of the maximum.
CONSTANT_LIMIT = 0.3
_TOLERANCE = 1e-9
_SEVERITIES: tuple[Severity, ...] = ("gold", "slip", "fault")


@dataclass(frozen=True)
class AttackRow:
  """What one kind of answer earned where one behavior was wanted.

  Attributes:
    behavior: the wanted behavior.
    attack: see `attacks.Attack.name`.
    severity: see `attacks.Attack.severity`.
    tasks: how many tasks it was tried on (once each).
    mean: mean reward.
    worst: the highest reward, or for the right answer the lowest.
    holes: on how many tasks it was a hole: it paid as much as the right answer, or, for the right
      answer, less than the maximum.
    example: an answer that is a hole, else any.
  """

  behavior: Behavior
  attack: str
  severity: Severity
  tasks: int
  mean: float
  worst: float
  holes: int
  example: str


@dataclass(frozen=True)
class ConstantRow:
  """What one answer earned on every task alike."""

  name: str
  completion: str
  mean: float
  hole: bool


@dataclass(frozen=True)
class Diagnosis:
  """What the doctor found.

  Attributes:
    reward: the reward's name.
    maximum: the best total, in the reward's unit.
    attacks: one row for each wanted behavior and attack, in the documented order.
    constants: one row for each constant answer, the best paid first.
    holes: one sentence for each hole; empty when the reward is sound on these tasks.
    failures: how many answers could not be scored, by error code.
  """

  reward: str
  maximum: float
  attacks: tuple[AttackRow, ...]
  constants: tuple[ConstantRow, ...]
  holes: tuple[str, ...]
  failures: tuple[tuple[str, int], ...]


def diagnose(reward: Reward, tasks: Sequence[ToolTask], seed: int = 0) -> Diagnosis:
  """Scores right, mutated and constant answers to every task and reports the holes.

  A hole is: a right answer that does not earn the maximum; a wrong one that earns as much as the
  right one; a fault that earns more on average than a slip where the same behavior is wanted; a
  constant answer that earns over `CONSTANT_LIMIT` of the maximum on average; an answer that the
  reward fails on.

  Args:
    reward: the reward; its `maximum`, when None, is taken to be the highest total seen.
    tasks: at least one.
    seed: draws the answers that are borrowed from other tasks.

  Raises:
    ValueError: no tasks.
  """
  if not tasks:
    raise ValueError("the doctor needs at least one task")
  rng = random.Random(seed)
  others = {b: [task.answer for task in tasks if task.behavior == b] for b in BEHAVIORS}
  prose = not reward.finds_calls_in_prose
  tried = [
    (task, attack) for task in tasks for attack in attacks_on(task, others, rng, prose=prose)
  ]
  before = Counter(reward.failures())
  found = reward.score_batch([a.completion for _, a in tried], [task for task, _ in tried])
  totals = [breakdown.total for breakdown in found]
  maximum = reward.maximum if reward.maximum is not None else max(totals)
  rows = _attack_rows(tried, totals, maximum)
  constants = _constant_rows(reward, tasks, maximum)
  failures = tuple((Counter(reward.failures()) - before).items())
  holes = [*_attack_holes(rows, maximum), *_order_holes(rows), *_constant_holes(constants)]
  holes += [f"{code}: {count} answers could not be scored" for code, count in failures]
  return Diagnosis(reward.name, maximum, rows, constants, tuple(holes), failures)


def as_table(diagnosis: Diagnosis) -> str:
  """The diagnosis as Markdown: attacks, constant answers, holes."""
  lines = [
    f"Reward `{diagnosis.reward}`, maximum {diagnosis.maximum:.3g}",
    "",
    "| wanted | answer | kind | tasks | mean | worst | holes |",
    "|---|---|---|---:|---:|---:|---:|",
  ]
  for row in diagnosis.attacks:
    lines.append(
      f"| {row.behavior} | {row.attack} | {row.severity} | {row.tasks} | {row.mean:.3f} "
      f"| {row.worst:.3f} | {row.holes or ''} |"
    )
  lines += ["", "| constant answer | mean | hole |", "|---|---:|---|"]
  for constant in diagnosis.constants:
    lines.append(f"| {constant.name} | {constant.mean:.3f} | {'hole' if constant.hole else ''} |")
  lines.append("")
  lines += [f"- {hole}" for hole in diagnosis.holes] or ["No holes found."]
  return "\n".join(lines)


def _attack_rows(
  tried: Sequence[tuple[ToolTask, Attack]], totals: Sequence[float], maximum: float
) -> tuple[AttackRow, ...]:
  cells: dict[tuple[Behavior, str, Severity], list[tuple[float, bool, str]]] = defaultdict(list)
  gold = maximum
  for (task, attack), total in zip(tried, totals, strict=True):
    if attack.severity == "gold":  # a task's right answer comes first
      gold, hole = total, total < maximum - _TOLERANCE
    else:
      hole = total >= gold - _TOLERANCE
    cells[task.behavior, attack.name, attack.severity].append((total, hole, attack.completion))
  rows = [
    AttackRow(
      behavior=behavior,
      attack=name,
      severity=severity,
      tasks=len(cell),
      mean=fmean(total for total, _, _ in cell),
      worst=(min if severity == "gold" else max)(total for total, _, _ in cell),
      holes=sum(hole for _, hole, _ in cell),
      example=next((text for _, hole, text in cell if hole), cell[0][2]),
    )
    for (behavior, name, severity), cell in cells.items()
  ]
  rows.sort(key=lambda row: (BEHAVIORS.index(row.behavior), _SEVERITIES.index(row.severity)))
  return tuple(rows)


def _attack_holes(rows: Sequence[AttackRow], maximum: float) -> list[str]:
  holes = []
  for row in rows:
    said = f'"{row.attack}" earns as much as the right answer'
    if row.severity == "gold":
      said = f"the right answer earns as little as {row.worst:.3g} of {maximum:.3g}"
    if row.holes:
      holes.append(
        f"{row.behavior} wanted: {said}, on {row.holes} of {row.tasks} tasks, "
        f"for example {row.example[:120]!r}"
      )
  return holes


def _order_holes(rows: Sequence[AttackRow]) -> list[str]:
  holes = []
  by_mean = attrgetter("mean")
  for behavior in BEHAVIORS:
    mine = [row for row in rows if row.behavior == behavior]
    slip = min((row for row in mine if row.severity == "slip"), key=by_mean, default=None)
    fault = max((row for row in mine if row.severity == "fault"), key=by_mean, default=None)
    if slip and fault and fault.mean > slip.mean + _TOLERANCE:
      holes.append(
        f'{behavior} wanted: "{fault.attack}" (mean {fault.mean:.3g}) earns more than the lesser '
        f'mistake "{slip.attack}" (mean {slip.mean:.3g})'
      )
  return holes


def _constant_rows(
  reward: Reward, tasks: Sequence[ToolTask], maximum: float
) -> tuple[ConstantRow, ...]:
  rows = []
  for name, completion in constant_answers(tasks):
    found = reward.score_batch([completion] * len(tasks), tasks)
    mean = fmean(breakdown.total for breakdown in found)
    rows.append(ConstantRow(name, completion, mean, mean > CONSTANT_LIMIT * maximum + _TOLERANCE))
  return tuple(sorted(rows, key=lambda row: -row.mean))


def _constant_holes(rows: Sequence[ConstantRow]) -> list[str]:
  return [
    f'the constant answer "{row.name}" earns {row.mean:.3g} on average: {row.completion[:80]!r}'
    for row in rows
    if row.hole
  ]
