"""Attacks a reward on a data set before a policy does, and reports the holes.

python experiments/check_reward.py --data=runs/data/train.jsonl --reward=tiered

Exits with 0 when the reward is sound on these tasks, 1 when it has holes, 2 when the data or the
reward could not be loaded.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.config import RunConfig
from grpo_jax.rewards import RewardConfig, load_reward
from grpo_jax.rewards.doctor import as_table, diagnose
from grpo_jax.tasks.jsonl import load_tasks

FLAGS = flags.FLAGS
command_line.define(RunConfig, ["reward"])
command_line.define(RewardConfig, without=["normalise"])  # a diagnosis is of one reward's totals
flags.DEFINE_string("data", None, "tasks: a file, folder or hub id", required=True)
flags.DEFINE_integer("limit", 0, "number of tasks, drawn at random; 0 takes all", lower_bound=0)
flags.DEFINE_integer("seed", 0, "of the draw and of borrowed answers")
flags.DEFINE_string("json", None, "file for the diagnosis as JSON")


@command_line.script()
def main(argv: list[str]) -> int:
  try:
    config = command_line.read(RewardConfig)
    tasks = load_tasks(FLAGS.data)
    if FLAGS.limit and FLAGS.limit < len(tasks):
      tasks = random.Random(FLAGS.seed).sample(tasks, FLAGS.limit)
    reward = load_reward(FLAGS.reward, config)
  except ValueError as error:
    print(error, file=sys.stderr)
    return 2
  with reward:
    diagnosis = diagnose(reward, tasks, FLAGS.seed)
    print(as_table(diagnosis))
    if reward.first_traceback:
      print(f"\nThe first failure:\n{reward.first_traceback}")
  if FLAGS.json:
    text = json.dumps(dataclasses.asdict(diagnosis), indent=2, ensure_ascii=False)
    Path(FLAGS.json).write_text(text, encoding="utf-8")
  return 1 if diagnosis.holes else 0


if __name__ == "__main__":
  app.run(main)
