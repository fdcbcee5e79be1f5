"""The record of a step's completions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from grpo_jax.config import GRPOConfig
from grpo_jax.rewards import RewardBreakdown
from grpo_jax.rollout_log import write_rollouts
from grpo_jax.schema import ToolTask

TASK = ToolTask.from_row({"prompt": "x", "reward_model": {"ground_truth": "Which city?"}})


@pytest.mark.parametrize(
  ("settings", "advantages"),
  [
    (GRPOConfig(), [0.9998, -0.9998]),
    (GRPOConfig(advantage_epsilon=0.5), [0.5, -0.5]),
    (GRPOConfig(advantage="none"), [0.5, -0.5]),
  ],
)
def test_the_recorded_advantages_are_those_that_are_trained_on(tmp_path, settings, advantages):
  rewards = np.asarray([[1.0, 0.0]], np.float32)
  found = [RewardBreakdown(1.0), RewardBreakdown(0.0)]
  write_rollouts(tmp_path, 3, [TASK], ["a", "b"], found, rewards, settings)
  (line,) = (tmp_path / "rollouts" / "step_000003.jsonl").read_text().splitlines()
  assert json.loads(line)["advantages"] == pytest.approx(advantages, abs=1e-5)
