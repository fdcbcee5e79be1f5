from __future__ import annotations

import pytest

from grpo_jax.rewards import TIERS, CombinedReward, RewardConfig, RewardWeights, load_reward
from grpo_jax.tasks.schema import ToolTask

TASK = ToolTask.from_row({"prompt": "x", "reward_model": {"ground_truth": "Which city?"}})


@pytest.mark.parametrize("tiers", TIERS)
def test_built_in_rewards_are_loaded_by_name(tiers):
  with load_reward(tiers) as reward:
    assert reward.name == tiers
    assert reward.score_batch([], []) == []
    assert reward.failures() == {}


def test_the_configuration_reaches_the_reward():
  config = RewardConfig(parse="auto", weights=RewardWeights(partial_clarify=0.125))
  with load_reward("tiered", config) as reward:
    prose, call = reward.score_batch(["No.", 'Ok: [{"name": "f", "arguments": {}}]'], [TASK] * 2)
  assert prose.total == 0.125
  assert call.error == "needless_call"


def test_several_rewards_are_weighted():
  with load_reward("3*tiered, 1 * binary") as reward:
    assert isinstance(reward, CombinedReward)
    assert reward.score_batch(["No, thanks."], [TASK])[0].total == pytest.approx(0.75 * 0.25)
    assert reward.maximum == 1.0


@pytest.mark.parametrize(
  ("spec", "match"),
  [
    ("best", "expected one of tiered, binary, graded, toolrl, judge"),
    ("", "an entry is empty"),
    ("tiered,", "an entry is empty"),
    ("tiered,tiered", "different names"),
    ("0*tiered,binary", "positive numbers"),
    ("judge", "needs a judge model"),
    ("my.py", "expected one of"),
  ],
)
def test_unknown_rewards_are_rejected(spec, match):
  with pytest.raises(ValueError, match=match):
    load_reward(spec)


@pytest.mark.parametrize(
  ("settings", "match"),
  [
    ({"parse": "loose"}, "--parse=loose must be one of strict, auto"),
    ({"normalise": "all"}, "--normalise=all must be one of none, group, batch"),
    ({"on_error": float("nan")}, "--reward_on_error=nan must be a finite number"),
    ({"time_limit": 0.0}, r"--reward_time_limit=0.0 must be above 0"),
    ({"workers": 0}, "--reward_workers=0 must be at least 1"),
  ],
)
def test_contradicting_settings_are_rejected(settings, match):
  with pytest.raises(ValueError, match=match):
    RewardConfig(**settings)
