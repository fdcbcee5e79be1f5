"""Several rewards as one: weights, normalization per reward, every part kept."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from grpo_jax.rewards.batch import Reward
from grpo_jax.rewards.breakdown import RewardBreakdown
from grpo_jax.tasks.schema import ToolTask

Normalise = Literal["none", "group", "batch"]
NORMALISATIONS: tuple[Normalise, ...] = get_args(Normalise)

#: Below this standard deviation, relative to the largest total or to 1 where that is smaller, the
#: totals of a group count as equal (as for the advantages). Float noise must not become a signal,
#: so this is a tolerance and not `== 0`.
EQUAL_STD = 1e-6


def normalised(
  totals: Sequence[float], scope: Normalise, group_size: int | None = None
) -> list[float]:
  """Standardizes the totals of one reward: (r - mean) / std, or 0 where all are equal.

  The standard deviation is the population's (ddof 0). Normalizing each reward before the sum keeps
  one with a wide range from drowning the others (as in GDPO, arXiv:2601.05242).

  Args:
    totals: float [P * G], the candidates of a prompt side by side.
    scope: `none` (totals as they are), `group` (within each prompt) or `batch`.
    group_size: G; needed for `group`.

  Raises:
    ValueError: unknown `scope`, or a `group_size` below 2 or no divisor of the number of totals.
  """
  if scope not in NORMALISATIONS:
    raise ValueError(f"normalise {scope!r}; expected one of {', '.join(NORMALISATIONS)}")
  if scope == "none":
    return list(totals)
  if scope == "batch":
    return _standardised(totals)
  if group_size is None or group_size < 2 or len(totals) % group_size:
    raise ValueError(
      f"group_size {group_size} is below 2 or does not divide the batch of {len(totals)}"
    )
  return [
    value
    for start in range(0, len(totals), group_size)
    for value in _standardised(totals[start : start + group_size])
  ]


def _standardised(totals: Sequence[float]) -> list[float]:
  if not totals:
    return []
  # A difference of equal totals is exactly 0, which their mean need not be equal to.
  differences = [total - totals[0] for total in totals]
  mean = math.fsum(differences) / len(totals)
  std = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / len(totals))
  if std < EQUAL_STD * max(1.0, *map(abs, totals)):
    return [0.0] * len(totals)
  return [(value - mean) / std for value in differences]


class CombinedReward(Reward):
  """The weighted mean of several rewards: sum over k of w_k n(r_k), divided by the sum of w_k.

  Without normalization the total lies where the rewards do. `parts` holds every reward's total
  under its name and its parts under `name/part`. Error, wrong arguments and shown behavior are the
  first reward's; the detail names every reward that reports an error.

  Args:
    rewards: at least one, with different names.
    weights: positive, one a reward; None weighs all alike.
    normalise: see `normalised`.
    group_size: G, for `normalise="group"`: the candidates of a prompt stand side by side.

  Raises:
    ValueError: no rewards, equal names, weights that do not fit, or an unknown `normalise`.
  """

  def __init__(
    self,
    rewards: Sequence[Reward],
    weights: Sequence[float] | None = None,
    normalise: Normalise = "none",
    group_size: int | None = None,
  ) -> None:
    weights = [1.0] * len(rewards) if weights is None else list(weights)
    names = [reward.name for reward in rewards]
    if not rewards or len(set(names)) != len(names):
      raise ValueError(f"rewards {names}: expected at least one, with different names")
    if len(weights) != len(rewards) or not all(math.isfinite(w) and w > 0 for w in weights):
      raise ValueError(f"weights {weights}: expected {len(rewards)} positive numbers")
    normalised([], normalise, group_size)  # refuses what does not fit, before any work
    self.name = "+".join(names)
    self.rewards = tuple(rewards)
    self.weights = tuple(weight / sum(weights) for weight in weights)
    self.finds_calls_in_prose = all(reward.finds_calls_in_prose for reward in rewards)
    maxima = [reward.maximum for reward in rewards]
    if normalise == "none" and all(maximum is not None for maximum in maxima):
      self.maximum = sum(w * (m or 0.0) for w, m in zip(self.weights, maxima, strict=True))
    self._normalise: Normalise = normalise
    self._group_size = group_size

  def unnormalised(self) -> "CombinedReward":
    """The same rewards and weights without normalization, on the same processes.

    What an evaluation needs: standardized totals have mean 0 whatever the policy does, and held-out
    tasks do not come in groups.
    """
    return CombinedReward(self.rewards, self.weights)

  def score_batch(
    self, completions: Sequence[str], tasks: Sequence[ToolTask]
  ) -> list[RewardBreakdown]:
    """Scores every completion with every reward."""
    columns = [reward.score_batch(completions, tasks) for reward in self.rewards]
    return self.standardised([self._combine(found) for found in zip(*columns, strict=True)])

  def standardised(self, found: Sequence[RewardBreakdown]) -> list[RewardBreakdown]:
    """A whole batch of `unnormalised` breakdowns, with the totals that normalization gives them.

    Hosts that score a share each put the shares together before this: means are the batch's.
    """
    if self._normalise == "none":
      return list(found)
    columns = [
      normalised([one.parts[reward.name] for one in found], self._normalise, self._group_size)
      for reward in self.rewards
    ]
    return [
      dataclasses.replace(one, total=self._weighted(totals))
      for one, *totals in zip(found, *columns, strict=True)
    ]

  def _weighted(self, totals: Sequence[float]) -> float:
    return math.fsum(weight * value for weight, value in zip(self.weights, totals, strict=True))

  def _combine(self, found: Sequence[RewardBreakdown]) -> RewardBreakdown:
    total = self._weighted([one.total for one in found])
    parts: dict[str, float] = {}
    for reward, one in zip(self.rewards, found, strict=True):
      parts[reward.name] = one.total
      parts.update({f"{reward.name}/{part}": value for part, value in one.parts.items()})
    detail = "; ".join(
      f"{reward.name}: {one.error} {one.detail}".rstrip()
      for reward, one in zip(self.rewards, found, strict=True)
      if one.error
    )
    return dataclasses.replace(found[0], total=total, parts=parts, detail=detail)

  def failures(self) -> Mapping[str, int]:
    """How many completions so far could not be scored, by reward and error code."""
    return {
      f"{reward.name}/{code}": count
      for reward in self.rewards
      for code, count in reward.failures().items()
    }

  @property
  def first_traceback(self) -> str:  # type: ignore[override]
    """What the first failure of the first failing reward said."""
    return next((reward.first_traceback for reward in self.rewards if reward.first_traceback), "")

  def close(self) -> None:
    """Closes every reward."""
    for reward in self.rewards:
      reward.close()
