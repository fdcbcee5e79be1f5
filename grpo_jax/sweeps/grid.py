"""The grid of a sweep: which training runs it is made of."""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

from grpo_jax.rewards import RewardWeights
from grpo_jax.settings import Setting

Value = bool | int | float | str

# The numbers that a built-in reward reads: cells that differ in others only are the same cell.
_NO_PARTS = frozenset(
  {"exact", "asks", "declines", "format_bonus", "ordered_calls", "max_text_chars"}
)
_PARTS = _NO_PARTS | {"partial_clarify", "partial_refuse"}
WEIGHTS_READ: Mapping[str, Collection[str]] = {
  "binary": _NO_PARTS,
  "tiered": _PARTS | {"partial_execute"},
  "graded": _PARTS | {"graded_floor"},
  "toolrl": frozenset(),
  "judge": _PARTS | {"partial_execute"},  # its rule is `tiered`
}


@dataclass(frozen=True)
class Cell:
  """One training run of a sweep.

  Attributes:
    settings: values by flag of the training script; the seed is one of them.
  """

  settings: Mapping[str, Value]

  @property
  def name(self) -> str:
    """What its folder is called."""
    text = ",".join(f"{flag}={as_flag(value)}" for flag, value in self.settings.items())
    return re.sub(r"[^\w.,=-]+", "_", text)

  @property
  def repeated(self) -> tuple[tuple[str, Value], ...]:
    """The settings that it shares with the same cell under other seeds."""
    return tuple((flag, value) for flag, value in self.settings.items() if flag != "seed")

  @property
  def arguments(self) -> list[str]:
    """Its settings as arguments of the training script."""
    return [f"--{flag}={as_flag(value)}" for flag, value in self.settings.items()]


def as_flag(value: Value) -> str:
  """A value as the command line takes it."""
  return str(value).lower() if isinstance(value, bool) else str(value)


def axis_values(axis: Setting, texts: Sequence[str]) -> list[Value]:
  """Reads the values of one axis.

  Args:
    axis: the setting that varies.
    texts: the values as they were given.

  Raises:
    ValueError: no value, one that the setting refuses, or one given twice.
  """
  found = [axis.read(text) for text in texts]
  for value in found:
    axis.check(value)
  if not found or len(set(found)) < len(found):
    raise ValueError(f"--{axis.name}={','.join(texts)} must be different values, at least one")
  return found


def grid(axes: Mapping[str, Sequence[Value]]) -> list[Cell]:
  """Every combination of the values, the first axis slowest."""
  return [
    Cell(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())
  ]


def without_idle_weights(cells: Sequence[Cell]) -> list[Cell]:
  """Drops weights that a cell's built-in reward does not read, then cells that are equal."""
  every = {field.name for field in fields(RewardWeights)}
  kept: list[Cell] = []
  for cell in cells:
    idle = every - set(WEIGHTS_READ.get(str(cell.settings["reward"]), every))
    cell = Cell({flag: value for flag, value in cell.settings.items() if flag not in idle})
    if cell not in kept:
      kept.append(cell)
  return kept


def with_equal_completions(cells: Sequence[Cell], completions: int) -> list[Cell]:
  """Gives each cell the number of steps that samples `completions` in all.

  Raises:
    ValueError: not a whole number of steps.
  """
  kept = []
  for cell in cells:
    a_step = int(cell.settings["prompts_per_step"]) * int(cell.settings["group_size"])
    if completions < 1 or completions % a_step:
      raise ValueError(
        f"{cell.name}: --completions={completions} is not a multiple of the {a_step} completions "
        "of a step"
      )
    kept.append(Cell({**cell.settings, "steps": completions // a_step}))
  return kept
