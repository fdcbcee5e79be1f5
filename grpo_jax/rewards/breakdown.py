"""What a reward returns, the numbers it is made of, and the codes that say why it is not 1."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from grpo_jax.files.assets import read_asset
from grpo_jax.settings import Settings, setting

Shown = Literal["execute", "clarify", "refuse", "other"]

#: Every value of `RewardBreakdown.error`, with its meaning. None means full marks.
ERRORS: Mapping[str, str] = read_asset("error_codes")["reward"]


@dataclass(frozen=True, slots=True)
class RewardBreakdown:
  """A reward and how it came about.

  Attributes:
    total: the reward; in [0, 1] for every built-in reward.
    error: why the total is below full marks, one of `ERRORS`, or None.
    parts: named shares in [0, 1] (or other named quantities), for logging.
    wrong_arguments: names of the arguments that were wrong, missing or extra, in schema order of
      the wanted call, without repetition.
    shown: the behavior that the completion showed, whatever was wanted.
    detail: more about `error`: the parser's code, or what a custom reward reported.
  """

  total: float
  error: str | None = None
  parts: Mapping[str, float] = field(default_factory=dict)
  wrong_arguments: tuple[str, ...] = ()
  shown: Shown = "other"
  detail: str = ""


@dataclass(frozen=True)
class RewardWeights(Settings):
  """Every number of the built-in rewards; rewards are dimensionless and lie in [0, 1].

  (Why 0.25: at 0.5, declining everything would earn 0.275 of a 60/25/15 mixture, and a weak policy
  was seen to slide into it.)
  """

  exact: float = setting(1.0, "execute: right tools and all arguments right", low=0, high=1)
  partial_execute: float = setting(
    0.5, "execute, tiered: right tools, some arguments not right", low=0, high=1
  )
  format_bonus: float = setting(
    0.0, "execute, parse=auto: the share that only a call in a strict form earns", low=0, high=1
  )
  graded_floor: float = setting(
    0.0,
    "execute, graded: right tools and no argument right; grows to `exact` with their share",
    low=0,
    high=1,
  )
  asks: float = setting(1.0, "clarify: asks for what is missing", low=0, high=1)
  partial_clarify: float = setting(0.25, "clarify: no call, but does not ask for it", low=0, high=1)
  declines: float = setting(1.0, "refuse: declines", low=0, high=1)
  partial_refuse: float = setting(0.25, "refuse: no call, but does not decline", low=0, high=1)
  ordered_calls: bool = setting(False, "whether parallel calls must come in the wanted order")
  max_text_chars: int = setting(
    1000, "a longer clarifying or declining text is degenerate", unit="characters", low=1
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    for partial, full in (
      ("partial_execute", "exact"),
      ("graded_floor", "exact"),
      ("partial_clarify", "asks"),
      ("partial_refuse", "declines"),
    ):
      if getattr(self, partial) > getattr(self, full):
        raise ValueError(f"{partial} must not exceed {full}: a mistake would pay more")
    if self.partial_execute > (1 - self.format_bonus) * self.exact:
      raise ValueError(
        "format_bonus must leave a right call at least partial_execute: a wrong argument would pay "
        "more than another form"
      )
