"""One of two hosts that score a step, for `test_hosts.py`, which runs this file twice:

    python host_scores.py HOST:PORT PROCESS REWARD_FILE FOLDER

Prints what `scores` returns as JSON. FOLDER, this host's own, gets a profile; only the first host
writes the metrics that its table is made of.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from grpo_jax.benchmarking.profiling import profiled_steps
from grpo_jax.rewards import RewardConfig, load_reward
from grpo_jax.runs import hosts
from grpo_jax.runs.rollouts import score_rollout
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.types import Prompts, Rollout

# Three prompts of three: half of the completions is no whole number of groups.
P, G, T = 3, 3, 16
# Fails on the completion of 16 letters, which is the second host's.
REWARD = (
  "def length(completion, task):\n"
  "  if len(completion) == 16: raise ValueError('too long')\n"
  "  return float(len(completion))\n"
)


def scores(file: str, normalise: str) -> list:
  """A step's breakdowns, failures and first traceback with two rewards of unlike width."""
  lengths = np.array([[1, 5, 9], [2, 2, 11], [3, 16, 4]])
  mask = np.arange(T) < lengths[..., None]
  prompts = Prompts(np.zeros((P, 1), np.int32), np.ones((P, 1), bool), np.arange(P))
  logp = mask.astype(float)
  drawn = Rollout(prompts, mask.astype(np.int32), mask, mask, logp, logp)
  row = {"prompt": "x", "reward_model": {"ground_truth": "Which city?"}}
  config = RewardConfig(normalise=normalise, group_size=G, workers=1)
  with load_reward(f"0.5*tiered,{file}:length", config) as reward:
    scored = score_rollout(
      drawn, [ToolTask.from_row(row)] * P, reward, lambda ids: "Which city is it?"[: len(ids)]
    )
  breakdowns = [dataclasses.asdict(one) for one in scored.breakdowns]
  return [breakdowns, scored.failures, scored.first_failure]


def main(coordinator: str, process: str, file: str, folder: str) -> None:
  """Joins the other host and goes through all of it."""
  hosts.initialize(coordinator, 2, int(process))
  found = {normalise: scores(file, normalise) for normalise in ("none", "group", "batch")}
  for step in profiled_steps(range(2), Path(folder), 1):
    if hosts.is_first():
      with (Path(folder) / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": step, "seconds/sample": 1.0}) + "\n")
  print(json.dumps(found))


if __name__ == "__main__":
  main(*sys.argv[1:])
