"""Scores a policy on held-out tasks, alone or beside an earlier evaluation of the same tasks.

    python experiments/evaluate.py --data=synthetic:unseen --out=runs/eval/base
    python experiments/evaluate.py --model=runs/mine/model --out=runs/eval/mine \\
      --compare_with=runs/eval/base
"""

import hashlib
from pathlib import Path
from typing import Any

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.config import RunConfig, template_day
from grpo_jax.evaluate import evaluate
from grpo_jax.models import attach, load_adapters, load_pretrained
from grpo_jax.report.evaluations import check_comparable, read_evaluation, write_evaluation
from grpo_jax.report.scores import compare
from grpo_jax.report.tables import as_text, gain_rows, score_rows
from grpo_jax.rewards import RewardConfig, load_reward, reward_files
from grpo_jax.tasks import load_tokenizer, stop_token_ids
from grpo_jax.tasks.sources import read_tasks

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
command_line.define(
  RunConfig,
  ["model", "data_seed", "reward", "parse", "max_prompt_tokens", "template_date",
   "plain_user_text", "seed", "dtype"],
  data="synthetic:unseen",
  max_completion_tokens=96,
  temperature=0.0,
)  # fmt: skip
flags.DEFINE_string("adapter", None, "folder of LoRA adapters (PEFT's format) for this model")
flags.DEFINE_string(
  "out",
  "runs/eval/latest",
  "folder for eval.json and completions.jsonl, or NAME.json with NAME.completions.jsonl beside it",
)
flags.DEFINE_string("compare_with", None, "the --out of an earlier evaluation of the same tasks")
flags.DEFINE_integer("limit", 0, "only the first so many tasks; 0: all", lower_bound=0)
flags.DEFINE_integer("samples", 1, "completions a task; above 1 with a temperature", lower_bound=1)
flags.DEFINE_integer("batch_prompts", 128, "the most prompts generated at a time", lower_bound=1)


@command_line.script()
def main(argv: list[str]) -> None:
  if FLAGS.samples > 1 and FLAGS.temperature == 0:
    raise app.UsageError(f"--samples={FLAGS.samples} needs a --temperature above 0")
  command_line.check()
  settings = scored_by()
  earlier = read_evaluation(FLAGS.compare_with) if FLAGS.compare_with else None
  if earlier:
    check_comparable(FLAGS.compare_with, earlier[0], settings)
  summary, rows = score_policy()
  summary["settings"] = settings
  scores = write_evaluation(FLAGS.out, summary, rows)
  print(as_text(*score_rows({FLAGS.data: summary})))
  if earlier:
    before, before_rows = earlier
    compared = compare(before_rows, rows, seed=FLAGS.seed)
    print(f"\nAgainst {FLAGS.compare_with}:\n")
    table = gain_rows({FLAGS.data: before}, {FLAGS.data: summary}, {FLAGS.data: compared})
    print(as_text(*table))
  print(f"\n{scores}")


def scored_by() -> dict[str, Any]:
  """What two evaluations must share for their difference to be one of the policies."""
  files = reward_files(FLAGS.reward)
  return {
    "reward": FLAGS.reward,
    "parse": FLAGS.parse,
    "reward_sha256": sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files),
    "max_completion_tokens": FLAGS.max_completion_tokens,
    "plain_user_text": FLAGS.plain_user_text,
  }


def score_policy() -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """The summary, and one row a completion."""
  # A run folder holds model/ and adapter/.
  date = template_day(FLAGS.template_date, Path(FLAGS.adapter or FLAGS.model).parent)
  tasks = read_tasks(FLAGS.data, FLAGS.data_seed)[: FLAGS.limit or None]
  with load_reward(FLAGS.reward, RewardConfig(parse=FLAGS.parse)) as reward:
    tokenizer = load_tokenizer(FLAGS.model)
    stop_ids = stop_token_ids(tokenizer, FLAGS.model)
    config, params = load_pretrained(FLAGS.model, dtype=FLAGS.dtype)
    if FLAGS.adapter:
      params = attach(params, *load_adapters(FLAGS.adapter, config))
    print(f"{len(tasks)} tasks, computed in {config.dtype}\n", flush=True)
    summary, rows = evaluate(
      config,
      params,
      tokenizer,
      tasks,
      reward=reward,
      max_prompt_tokens=FLAGS.max_prompt_tokens,
      max_completion_tokens=FLAGS.max_completion_tokens,
      stop_ids=stop_ids,
      temperature=FLAGS.temperature,
      samples=FLAGS.samples,
      seed=FLAGS.seed,
      batch_prompts=FLAGS.batch_prompts,
      date=date,
      plain_user_text=FLAGS.plain_user_text,
    )
    how = {
      "template_date": date,
      "plain_user_text": FLAGS.plain_user_text,
      "dtype": config.dtype,
    }
    return summary | how, rows


if __name__ == "__main__":
  app.run(main)
