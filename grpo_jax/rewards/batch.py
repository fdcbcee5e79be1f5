"""Rewards as the training loop sees them: a batch of completions in, breakdowns out."""

import abc
import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from grpo_jax.rewards.breakdown import RewardBreakdown, RewardWeights
from grpo_jax.rewards.parsing.parser import ParseMode
from grpo_jax.rewards.tiers import DEFAULT_WEIGHTS, TIERS, Tiers, score
from grpo_jax.tasks.schema import ToolTask


class Reward(contextlib.AbstractContextManager, abc.ABC):
  """What scores completions; a context manager, since it may hold processes or connections.

  Attributes:
    name: for logging.
    maximum: the best total there is, in the reward's own unit, or None when unknown.
    finds_calls_in_prose: whether a call inside prose is meant to count as the call alone.
    first_traceback: what the first failure said, or the empty string.
  """

  name: str
  maximum: float | None = None
  finds_calls_in_prose: bool = False
  first_traceback: str = ""
  _failures: Mapping[str, int] = MappingProxyType({})

  @abc.abstractmethod
  def score_batch(
    self, completions: Sequence[str], tasks: Sequence[ToolTask]
  ) -> list[RewardBreakdown]:
    """Scores `completions[i]` as an answer to `tasks[i]`; raises on no completion."""

  def failures(self) -> Mapping[str, int]:
    """How many completions so far could not be scored, by error code."""
    return dict(self._failures)

  def close(self) -> None:
    """Ends processes and connections; may be called twice."""

  def __exit__(self, *raised: object) -> None:
    self.close()

  def _count_failure(self, code: str, said: str) -> None:
    self._failures = {**self._failures, code: self._failures.get(code, 0) + 1}
    self.first_traceback = self.first_traceback or said or code


class BuiltInReward(Reward):
  """One of the built-in rewards, scored in this process.

  Args:
    name: `tiered`, `binary`, `graded` or `toolrl`.
    parse: which forms count as a call.
    weights: the numbers.

  Raises:
    ValueError: unknown `name`.
  """

  def __init__(
    self,
    name: Tiers = "tiered",
    parse: ParseMode = "strict",
    weights: RewardWeights = DEFAULT_WEIGHTS,
  ) -> None:
    if name not in TIERS:
      raise ValueError(f"reward {name!r}; expected one of {', '.join(TIERS)}")
    self.name: Tiers = name
    self.maximum = 1.0 if name == "toolrl" else max(weights.exact, weights.asks, weights.declines)
    self.finds_calls_in_prose = parse == "auto"
    self._parse = parse
    self._weights = weights

  def score_batch(
    self, completions: Sequence[str], tasks: Sequence[ToolTask]
  ) -> list[RewardBreakdown]:
    """Scores `completions[i]` as an answer to `tasks[i]`."""
    return [
      score(completion, task, self.name, self._parse, self._weights)
      for completion, task in zip(completions, tasks, strict=True)
    ]
