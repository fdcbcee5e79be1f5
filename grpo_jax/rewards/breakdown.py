"""What a reward returns, the numbers it is made of, and the codes that say why it is not 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

Shown = Literal["execute", "clarify", "refuse", "other"]

#: Every value of `RewardBreakdown.error`, with its meaning. None means full marks.
ERRORS: Mapping[str, str] = MappingProxyType(
  {
    # wanted: execute
    "no_call": "a call was wanted and none was made",
    "invented_tool": "calls a tool that is not on offer",
    "wrong_tool": "calls a tool that is on offer but not wanted",
    "extra_call": "makes every wanted call and more",
    "missing_call": "makes some of the wanted calls and no other",
    "wrong_order": "the right calls in the wrong order, where the order counts",
    "wrong_argument": "the right tool, and a value that differs",
    "missing_argument": "the right tool, and a wanted argument left out",
    "extra_argument": "the right tool, and an argument that nobody asked for",
    # any wanted behaviour
    "unparsable": "meant as a call (or mixed with one) but not in an accepted form; see `detail`",
    # wanted: clarify or refuse
    "needless_call": "a call where none was wanted",
    "degenerate": "empty, without words, too long or repeating itself",
    "hedging": "declines and asks in one answer, which would serve for both",
    "no_question": "a question was wanted and none was asked",
    "wrong_question": "asks, but for something that is not missing",
    "asks_everything": "asks for what is missing among many arguments that are not",
    "not_declined": "declining was wanted, and the text does not decline",
    # rewards that somebody else wrote
    "reward_error": "the reward function raised an exception",
    "reward_timeout": "the reward function exceeded its time limit",
    "reward_crash": "the process of the reward function ended",
    "reward_invalid": "the reward function did not return a finite number, or one beyond 1e9",
  }
)


@dataclass(frozen=True, slots=True)
class RewardBreakdown:
  """A reward and how it came about.

  Attributes:
    total: the reward; in [0, 1] for every built-in reward.
    error: why the total is below full marks, one of `ERRORS`, or None.
    parts: named shares in [0, 1] (or other named quantities), for logging.
    wrong_arguments: names of the arguments that were wrong, missing or extra, in schema order of
      the wanted call, without repetition.
    shown: the behaviour that the completion showed, whatever was wanted.
    detail: more about `error`: the parser's code, or what a custom reward reported.
  """

  total: float
  error: str | None = None
  parts: Mapping[str, float] = field(default_factory=dict)
  wrong_arguments: tuple[str, ...] = ()
  shown: Shown = "other"
  detail: str = ""


def _number(default: Any, meaning: str) -> Any:
  """A setting with the help text that experiments show for its flag."""
  return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class RewardWeights:
  """Every number of the built-in rewards; rewards are dimensionless and lie in [0, 1].

  Each field's meaning is in its metadata under `help`, for the flags of the experiments. (Why
  0.25: at 0.5, declining everything would earn 0.275 of a 60/25/15 mixture, and a weak policy was
  seen to slide into it.)
  """

  exact: float = _number(1.0, "execute: right tools and all arguments right")
  partial_execute: float = _number(0.5, "execute, tiered: right tools, some arguments not right")
  graded_floor: float = _number(
    0.0, "execute, graded: right tools and no argument right; grows to `exact` with their share"
  )
  asks: float = _number(1.0, "clarify: asks for what is missing")
  partial_clarify: float = _number(0.25, "clarify: no call, but does not ask for it")
  declines: float = _number(1.0, "refuse: declines")
  partial_refuse: float = _number(0.25, "refuse: no call, but does not decline")
  ordered_calls: bool = _number(False, "whether parallel calls must come in the wanted order")
  max_text_chars: int = _number(
    1000, "characters of a clarifying or declining text; a longer one is degenerate"
  )

  def __post_init__(self) -> None:
    for entry in fields(self):
      value = getattr(self, entry.name)
      if entry.type == "float" and not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise ValueError(f"{entry.name} is {value}; expected a number in [0, 1]")
    for partial, full in (
      ("partial_execute", "exact"),
      ("graded_floor", "exact"),
      ("partial_clarify", "asks"),
      ("partial_refuse", "declines"),
    ):
      if getattr(self, partial) > getattr(self, full):
        raise ValueError(f"{partial} must not exceed {full}: a mistake would pay more")
    if self.max_text_chars < 1:
      raise ValueError(f"max_text_chars is {self.max_text_chars}; expected at least 1")
