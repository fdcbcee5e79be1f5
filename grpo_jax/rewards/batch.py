"""Rewards as the training loop sees them: a batch of completions in, breakdowns out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from grpo_jax.rewards.breakdown import RewardBreakdown, RewardWeights
from grpo_jax.rewards.parsing.parser import ParseMode
from grpo_jax.rewards.tiers import BUILT_IN, DEFAULT_WEIGHTS, TIERS, Tiers
from grpo_jax.tasks.schema import ToolTask


class Reward(Protocol):
  """What scores completions; a context manager, since it may hold processes or connections.

  Attributes:
    name: for logging.
    maximum: the best total there is, in the reward's own unit, or None when unknown.
    finds_calls_in_prose: whether a call inside prose is meant to count as the call alone.
  """

  name: str
  maximum: float | None
  finds_calls_in_prose: bool

  def score_batch(
    self, completions: Sequence[str], tasks: Sequence[ToolTask]
  ) -> list[RewardBreakdown]:
    """Scores `completions[i]` as an answer to `tasks[i]`; raises on no completion."""

  def failures(self) -> Mapping[str, int]:
    """How many completions so far could not be scored, by error code."""

  @property
  def first_traceback(self) -> str:
    """What the first failure said, or the empty string."""

  def close(self) -> None:
    """Ends processes and connections; may be called twice."""

  def __enter__(self) -> Self: ...

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None: ...


class InProcess:
  """The part of `Reward` that is the same for every reward that cannot fail."""

  maximum: float | None = None
  finds_calls_in_prose = False
  first_traceback = ""

  def failures(self) -> Mapping[str, int]:
    """No completion has ever failed to be scored."""
    return {}

  def close(self) -> None:
    """There is nothing to end."""

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.close()


class BuiltInReward(InProcess):
  """One of the built-in tiers, scored in this process.

  Args:
    tiers: `tiered`, `binary`, `graded` or `toolrl`.
    parse: which forms count as a call.
    weights: the numbers.

  Raises:
    ValueError: unknown `tiers`.
  """

  def __init__(
    self,
    tiers: Tiers = "tiered",
    parse: ParseMode = "strict",
    weights: RewardWeights = DEFAULT_WEIGHTS,
  ) -> None:
    if tiers not in TIERS:
      raise ValueError(f"tiers {tiers!r}; expected one of {', '.join(TIERS)}")
    self.name: str = tiers
    self.maximum = 1.0 if tiers == "toolrl" else max(weights.exact, weights.asks, weights.declines)
    self.finds_calls_in_prose = parse == "auto"
    self._function: Callable[..., RewardBreakdown] = BUILT_IN[tiers]
    self._parse = parse
    self._weights = weights

  def score_batch(
    self, completions: Sequence[str], tasks: Sequence[ToolTask]
  ) -> list[RewardBreakdown]:
    """Scores `completions[i]` as an answer to `tasks[i]`."""
    return [
      self._function(completion, task, self._parse, self._weights)
      for completion, task in zip(completions, tasks, strict=True)
    ]
