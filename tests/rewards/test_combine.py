from __future__ import annotations

import math

import pytest

from grpo_jax.rewards import BuiltInReward, CombinedReward, RewardBreakdown
from grpo_jax.rewards.batch import Reward
from grpo_jax.rewards.combine import normalised
from grpo_jax.tasks.schema import ToolTask

TASK = ToolTask.from_row({"prompt": "x", "reward_model": {"ground_truth": "Which city?"}})


class Length(Reward):
  """A second reward with another range: the number of characters."""

  name = "length"

  def score_batch(self, completions, tasks):
    return [
      RewardBreakdown(float(len(c)), "no_call" if not c else None, {"chars": float(len(c))})
      for c in completions
    ]


def test_the_total_is_the_weighted_mean_and_every_part_is_kept():
  reward = CombinedReward([BuiltInReward("tiered"), Length()], [3, 1])
  right, empty = reward.score_batch(["Which city?", ""], [TASK, TASK])
  assert right.total == pytest.approx(0.75 * 1 + 0.25 * 11)
  assert right.parts == {
    "tiered": 1.0,
    "tiered/clarify/no_call": 1.0,
    "tiered/clarify/asks": 1.0,
    "length": 11.0,
    "length/chars": 11.0,
  }
  assert (right.error, right.shown, right.detail) == (None, "clarify", "")
  assert (empty.error, empty.detail) == ("degenerate", "tiered: degenerate; length: no_call")


def test_normalisation_is_by_group_by_batch_or_not_at_all():
  totals = [1.0, 3.0, 10.0, 10.0]
  assert normalised(totals, "none") == totals
  assert normalised(totals, "group", 2) == [-1.0, 1.0, 0.0, 0.0]
  mean, std = 6.0, math.sqrt((25 + 9 + 16 + 16) / 4)
  assert normalised(totals, "batch") == pytest.approx([(t - mean) / std for t in totals])
  assert normalised([0.1 + 0.2, 0.3], "batch") == [0.0, 0.0]
  assert normalised([], "batch") == []


@pytest.mark.parametrize("total", [0.1, 98_765.4, -1.1e11])
def test_equal_totals_are_normalised_to_zero_however_large_they_are(total):
  for size in (3, 6, 7):
    noisy = [total] * (size - 1) + [math.nextafter(total, math.inf)]
    assert normalised([total] * size, "batch") == normalised(noisy, "batch") == [0.0] * size
  assert normalised([1e6, 1e6 + 8], "batch") == [-1.0, 1.0]


def test_a_wide_reward_does_not_drown_a_narrow_one_once_normalised():
  completions = ["Which city?", "Which town, my very dear and much esteemed friend?"]
  rewards = [BuiltInReward("tiered"), Length()]
  plain = CombinedReward(rewards).score_batch(completions, [TASK, TASK])
  assert plain[0].total < plain[1].total
  scaled = CombinedReward(rewards, [2, 1], "group", 2).score_batch(completions, [TASK, TASK])
  assert [found.total for found in scaled] == pytest.approx([1 / 3, -1 / 3])


def test_an_evaluation_gets_the_totals_without_normalisation():
  plain = CombinedReward([BuiltInReward("tiered"), Length()], [3, 1])
  scaled = CombinedReward([BuiltInReward("tiered"), Length()], [3, 1], "group", 2)
  one = scaled.unnormalised().score_batch(["Which city?"], [TASK])
  assert one == plain.score_batch(["Which city?"], [TASK])
  assert scaled.unnormalised().rewards == scaled.rewards


@pytest.mark.parametrize(
  ("rewards", "weights", "normalise", "group_size", "match"),
  [
    ([], None, "none", None, "at least one"),
    ([Length(), Length()], None, "none", None, "different names"),
    ([Length()], [0.0], "none", None, "positive numbers"),
    ([Length()], [1.0, 1.0], "none", None, "expected 1 positive"),
    ([Length()], [math.nan], "none", None, "positive numbers"),
    ([Length()], None, "prompt", None, "none, group, batch"),
    ([Length()], None, "group", None, "group_size"),
  ],
)
def test_settings_that_do_not_fit_are_rejected(rewards, weights, normalise, group_size, match):
  with pytest.raises(ValueError, match=match):
    CombinedReward(rewards, weights, normalise, group_size)


def test_a_batch_that_is_no_whole_number_of_groups_is_rejected():
  with pytest.raises(ValueError, match="does not divide the batch of 3"):
    normalised([1.0, 2.0, 3.0], "group", 2)
