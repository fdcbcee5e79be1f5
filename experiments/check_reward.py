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
from typing import Any

from absl import app, flags

from grpo_jax.data.jsonl import load_tasks
from grpo_jax.rewards import (
  PARSE_MODES,
  TIERS,
  JudgeConfig,
  RewardConfig,
  RewardWeights,
  load_reward,
)
from grpo_jax.rewards.doctor import as_table, diagnose
from grpo_jax.rewards.judge import JUDGED

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "tasks: a file, folder or hub id", required=True)
flags.DEFINE_string(
  "reward",
  "tiered",
  f"{', '.join(TIERS)}, judge, or path/to/file.py:function; several with weights as "
  "0.8*tiered,0.2*judge",
)
flags.DEFINE_enum("parse", "strict", PARSE_MODES, "which forms count as a call")
flags.DEFINE_float("reward_on_error", 0.0, "total where a custom reward fails")
flags.DEFINE_float("reward_time_limit", 5.0, "seconds for one call of a custom reward")
flags.DEFINE_integer("reward_workers", 2, "processes for a custom reward", lower_bound=1)
flags.DEFINE_string("judge_model", None, "model that judges, for the reward `judge`")
flags.DEFINE_string("judge_url", None, "OpenAI-compatible endpoint, such as http://host:8000/v1")
flags.DEFINE_string("judge_cache", None, "folder that keeps the judge's verdicts")
flags.DEFINE_enum("judged", "texts", JUDGED, "what is judged: texts without a call, or all answers")
flags.DEFINE_integer("limit", 0, "number of tasks, drawn at random; 0 takes all", lower_bound=0)
flags.DEFINE_integer("seed", 0, "of the draw and of borrowed answers")
flags.DEFINE_string("json", None, "file for the diagnosis as JSON")
for _field in dataclasses.fields(RewardWeights):
  _define: Any = {"bool": flags.DEFINE_bool, "int": flags.DEFINE_integer}.get(
    str(_field.type), flags.DEFINE_float
  )
  _define(_field.name, _field.default, _field.metadata["help"])


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  try:
    config = _config()
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


def _config() -> RewardConfig:
  judge = None
  if FLAGS.judge_model:
    judge = JudgeConfig(
      model=FLAGS.judge_model,
      base_url=FLAGS.judge_url,
      cache_dir=FLAGS.judge_cache,
      judged=FLAGS.judged,
    )
  names = [field.name for field in dataclasses.fields(RewardWeights)]
  numbers: dict[str, Any] = {name: FLAGS[name].value for name in names}
  return RewardConfig(
    parse=FLAGS.parse,
    weights=RewardWeights(**numbers),
    on_error=FLAGS.reward_on_error,
    time_limit=FLAGS.reward_time_limit,
    workers=FLAGS.reward_workers,
    judge=judge,
  )


if __name__ == "__main__":
  app.run(main)
