"""The doctor: sound rewards pass, and each kind of hole is found."""

from __future__ import annotations

import pytest

from grpo_jax.rewards import BuiltInReward, RewardBreakdown, RewardWeights, score
from grpo_jax.rewards.attacks import other_type, other_value
from grpo_jax.rewards.batch import Reward
from grpo_jax.rewards.doctor import as_table, diagnose
from grpo_jax.rewards.matching.values import equal_values
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.synthetic.splits import generate

TASKS = [ToolTask.from_row(row) for row in generate(0, "train", 60)]


class Rule(Reward):
  """A reward given as a function of completion and task."""

  name = "rule"

  def __init__(self, function):
    self._function = function

  def score_batch(self, completions, tasks):
    return [RewardBreakdown(self._function(*pair)) for pair in zip(completions, tasks, strict=True)]


@pytest.mark.parametrize("tiers", ["tiered", "binary", "graded"])
@pytest.mark.parametrize("parse", ["strict", "auto"])
@pytest.mark.parametrize("style", ["system", "tools"])
def test_built_in_rewards_have_no_holes(tiers, parse, style):
  tasks = [ToolTask.from_row(row) for row in generate(1, "unseen", 60, style)]
  assert diagnose(BuiltInReward(tiers, parse), tasks).holes == ()


def test_toolrl_pays_for_needless_calls():
  found = diagnose(BuiltInReward("toolrl"), TASKS)
  for behavior in ("clarify", "refuse"):
    assert any(
      hole.startswith(f'{behavior} wanted: "needless call" earns as much as the right answer')
      for hole in found.holes
    )
  assert any('"extra call"' in hole and "lesser mistake" in hole for hole in found.holes)
  assert "| clarify | needless call | fault |" in as_table(found)


def test_half_marks_for_withholding_a_call_are_still_no_hole_on_this_mixture():
  weights = RewardWeights(partial_clarify=0.5, partial_refuse=0.5)
  found = diagnose(BuiltInReward("tiered", weights=weights), TASKS)
  assert found.constants[0].name in ("a refusal", "the commonest refuse answer")
  assert found.constants[0].mean == pytest.approx(0.25 * 0.5 + 0.15, abs=0.01)
  assert found.holes == ()


@pytest.mark.parametrize(
  ("rule", "hole"),
  [
    (lambda c, t: 0.5 * score(c, t).total + 0.4 * ("?" in c), "the right answer earns as little"),
    (lambda c, t: float(t.answer in c), '"repeated gold" earns as much'),
    (lambda c, t: float(t.answer in c), '"gold in prose" earns as much'),
    (lambda c, t: score(c, t, parse="auto").total, '"gold in prose" earns as much'),
    (lambda c, t: 1.0 - 0.5 * (score(c, t).total < 1), "constant answer"),
    (lambda c, t: min(1.0, score(c, t).total + 0.4 * (c == "")), '"empty" (mean 0.4) earns more'),
  ],
)
def test_holes_are_found(rule, hole):
  found = diagnose(Rule(rule), TASKS)
  assert any(hole in said for said in found.holes), found.holes
  assert hole in as_table(found)


def test_a_sound_custom_reward_has_no_holes():
  found = diagnose(Rule(lambda c, t: score(c, t).total), TASKS)
  assert found.holes == () and found.maximum == 1.0
  assert "No holes found." in as_table(found)


def test_answers_that_cannot_be_scored_are_holes():
  class Failing(Rule):
    count = 0

    def score_batch(self, completions, tasks):
      Failing.count += sum(c == "" for c in completions)
      return super().score_batch(completions, tasks)

    def failures(self):
      return {"reward_error": Failing.count}

  found = diagnose(Failing(lambda c, t: score(c, t).total), TASKS)
  # Once as an answer to each task; the constant answers come on top.
  assert found.failures == (("reward_error", 2 * len(TASKS)),)
  assert found.holes[-1].startswith("reward_error: ")


def test_every_kind_of_attack_is_tried():
  rows = diagnose(BuiltInReward(), TASKS).attacks
  tried = {(row.behavior, row.attack) for row in rows}
  for attack in (
    "gold",
    "wrong value",
    "wrong type",
    "missing argument",
    "extra argument",
    "invented tool",
    "wrong tool",
    "extra call",
    "gold in prose",
    "a clarify answer",
    "a refuse answer",
    "empty",
    "cut off",
    "hedging",
  ):
    assert ("execute", attack) in tried
  for behavior in ("clarify", "refuse"):
    for attack in ("gold", "needless call", "gold and a call", "empty", "repeated gold"):
      assert (behavior, attack) in tried


@pytest.mark.parametrize("value", [True, 0, 1.5, "", "Oslo", [], [1], {}, {"a": 1}, None])
def test_mutated_values_differ(value):
  assert not equal_values(other_value(value), value)
  assert not equal_values(other_type(value), value)


def test_no_tasks_are_rejected():
  with pytest.raises(ValueError, match="at least one task"):
    diagnose(BuiltInReward(), [])
