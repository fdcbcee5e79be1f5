"""From what a flag says to a reward: `tiered`, `my.py:function`, `0.8*tiered,0.2*judge`."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from grpo_jax.rewards.batch import BuiltInReward, Reward
from grpo_jax.rewards.breakdown import RewardWeights
from grpo_jax.rewards.combine import CombinedReward, Normalise
from grpo_jax.rewards.custom import CustomReward
from grpo_jax.rewards.judge import JudgeConfig, JudgeReward
from grpo_jax.rewards.parsing.parser import ParseMode
from grpo_jax.rewards.tiers import TIERS
from grpo_jax.settings import Settings, setting

_WEIGHTED = re.compile(r"\s*(?:(?P<weight>\d+(?:\.\d+)?)\s*\*)?\s*(?P<spec>.+?)\s*")
_FILE = re.compile(r"(?P<path>.+\.py):(?P<function>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class RewardConfig(Settings):
  """How rewards are loaded and run."""

  parse: ParseMode = setting("strict", "which forms count as a call, for the built-in rewards")
  weights: RewardWeights = field(default_factory=RewardWeights)
  normalise: Normalise = setting(
    "none", "how each of several rewards is standardised before they are added"
  )
  group_size: int | None = setting(None, "G, for normalise=group", low=1, same_as="group_size")
  on_error: float = setting(0.0, "total where a custom reward fails", name="reward_on_error")
  time_limit: float = setting(
    5.0, "for one call of a custom reward", unit="seconds", above=0, name="reward_time_limit"
  )
  workers: int = setting(2, "processes for each custom reward", low=1, name="reward_workers")
  judge: JudgeConfig | None = None


DEFAULT_CONFIG = RewardConfig()


def load_reward(spec: str, config: RewardConfig = DEFAULT_CONFIG) -> Reward:
  """Makes the reward that a flag names.

  Args:
    spec: a built-in reward (`tiered`, `binary`, `graded`, `toolrl`), `judge`, `file.py:function`,
      or several of these separated by commas, each with an optional weight: `0.8*tiered,0.2*judge`.
    config: how they are run.

  Returns:
    A context manager with `score_batch(completions, tasks) -> list[RewardBreakdown]`.

  Raises:
    ValueError: an unknown name, a file or function that cannot be loaded, weights that do not fit.
  """
  weights: list[float] = []
  rewards: list[Reward] = []
  try:
    for entry in spec.split(","):
      match = _WEIGHTED.fullmatch(entry)
      if match is None:
        raise ValueError(f"reward {spec!r}: an entry is empty")
      weights.append(float(match["weight"] or 1.0))
      rewards.append(_load_one(match["spec"], config))
    if len(rewards) == 1 and config.normalise == "none":
      return rewards[0]
    return CombinedReward(rewards, weights, config.normalise, config.group_size)
  except ValueError:
    for reward in rewards:
      reward.close()
    raise


def reward_files(spec: str) -> list[Path]:
  """The Python files that a reward flag names: what they say decides a run's future."""
  matches = [_WEIGHTED.fullmatch(entry) for entry in spec.split(",")]
  found = [_FILE.fullmatch(match["spec"]) for match in matches if match]
  return [Path(match["path"]) for match in found if match]


def _load_one(spec: str, config: RewardConfig) -> Reward:
  for name in TIERS:
    if spec == name:
      return BuiltInReward(name, config.parse, config.weights)
  if spec == "judge":
    if config.judge is None:
      raise ValueError(
        'reward "judge" needs a judge model and endpoint (--judge_model, --judge_url; for a sweep '
        "after its --)"
      )
    return JudgeReward(config.judge, BuiltInReward("tiered", config.parse, config.weights))
  match = _FILE.fullmatch(spec)
  if match is None:
    valid = ", ".join((*TIERS, "judge", "path/to/file.py:function"))
    raise ValueError(f"reward {spec!r}; expected one of {valid}")
  return CustomReward(
    match["path"],
    match["function"],
    on_error=config.on_error,
    time_limit=config.time_limit,
    workers=config.workers,
    parse=config.parse,
  )
