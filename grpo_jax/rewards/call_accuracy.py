"""Whether an answer's calls are right, and nothing about its words: what leaderboards count."""

import dataclasses
from collections.abc import Sequence

from grpo_jax.rewards.batch import Reward
from grpo_jax.rewards.breakdown import RewardBreakdown
from grpo_jax.rewards.parsing.parser import ParseMode
from grpo_jax.rewards.tiers import score
from grpo_jax.tasks.schema import ToolTask


class CallAccuracy(Reward):
  """1 for a right answer and 0 for any other.

  Right is: exactly the wanted calls, where a task says which (`binary`); any call, where it wants
  calls and does not say which; no call, where it wants none, whatever the text says. An answer that
  is meant as a call and cannot be read makes none, as on the Berkeley leaderboard.

  Args:
    parse: which forms count as a call.
  """

  name = "call_accuracy"
  maximum = 1.0

  def __init__(self, parse: ParseMode = "auto") -> None:
    self.finds_calls_in_prose = parse == "auto"
    self._parse: ParseMode = parse

  def score_batch(
    self, completions: Sequence[str], tasks: Sequence[ToolTask]
  ) -> list[RewardBreakdown]:
    """Scores `completions[i]` as an answer to `tasks[i]`."""
    return [self._score(*pair) for pair in zip(completions, tasks, strict=True)]

  def _score(self, completion: str, task: ToolTask) -> RewardBreakdown:
    found = score(completion, task, "binary", self._parse)
    if task.calls:
      return found
    calls = found.shown == "execute"
    right = calls == (task.behavior == "execute")
    error = None if right else "needless_call" if calls else found.error
    return dataclasses.replace(found, total=float(right), error=error, parts={})
