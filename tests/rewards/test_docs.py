"""docs/rewards.md lists every code and form that the rewards use."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from grpo_jax.rewards import ERRORS, PARSE_ERRORS, TIERS, RewardWeights

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("codes", [ERRORS, PARSE_ERRORS])
def test_every_code_is_documented_with_its_meaning(codes):
  for code, meaning in codes.items():
    assert f"| `{code}` | {meaning} |" in PAGE


def test_every_number_is_documented():
  for field in dataclasses.fields(RewardWeights):
    assert f"`{field.name}`" in PAGE
    assert field.metadata["setting"].help


def test_the_doctor_s_table_of_every_built_in_reward_is_shown():
  for tiers in TIERS:
    assert f"\nReward `{tiers}`, maximum 1\n" in PAGE
  assert '"needless call" earns as much as the right answer' in PAGE
