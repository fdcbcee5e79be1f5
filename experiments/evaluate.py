"""Scores a policy on held-out tasks, alone or beside an earlier evaluation of the same tasks.

    python experiments/evaluate.py --data=synthetic:unseen --out=runs/eval/base
    python experiments/evaluate.py --model=runs/mine/model --out=runs/eval/mine \\
      --compare_with=runs/eval/base
"""

import datetime
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.config import RunConfig, check_date, recorded
from grpo_jax.evaluate import evaluate
from grpo_jax.files.atomic import write_json
from grpo_jax.models import attach, load_adapters, load_pretrained
from grpo_jax.report.scores import compare, differing_settings
from grpo_jax.report.tables import as_text, gain_rows, score_rows
from grpo_jax.rewards import RewardConfig, load_reward, reward_files
from grpo_jax.tasks import load_tokenizer, stop_token_ids
from grpo_jax.tasks.jsonl import write_jsonl
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
  scores, completions = out_paths(FLAGS.out)
  command_line.check()
  settings = scored_by()
  earlier = read_evaluation(FLAGS.compare_with) if FLAGS.compare_with else None
  if earlier and (names := differing_settings(earlier[0], {"settings": settings})):
    raise ValueError(f"--compare_with={FLAGS.compare_with} has another {', '.join(names)}")
  summary, rows = score_policy()
  summary["settings"] = settings
  write_json(scores, summary)
  write_jsonl(rows, completions)
  print(as_text(*score_rows({FLAGS.data: summary})))
  if earlier:
    before, before_rows = earlier
    compared = compare(before_rows, rows, seed=FLAGS.seed)
    print(f"\nAgainst {FLAGS.compare_with}:\n")
    table = gain_rows({FLAGS.data: before}, {FLAGS.data: summary}, {FLAGS.data: compared})
    print(as_text(*table))
  print(f"\n{scores}")


def out_paths(out: str) -> tuple[Path, Path]:
  """Where the scores and the completions of `--out` lie."""
  path = Path(out) if out.endswith(".json") else Path(out) / "eval.json"
  own = "" if path.name == "eval.json" else f"{path.stem}."
  return path, path.with_name(f"{own}completions.jsonl")


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
  date = template_date()
  tasks = read_tasks(FLAGS.data, FLAGS.data_seed)[: FLAGS.limit or None]
  with load_reward(FLAGS.reward, RewardConfig(parse=FLAGS.parse)) as reward:
    tokenizer = load_tokenizer(FLAGS.model)
    stop_ids = stop_token_ids(tokenizer, FLAGS.model)
    config, params = load_pretrained(FLAGS.model, dtype=FLAGS.dtype)
    if FLAGS.adapter:
      params = attach(params, *load_adapters(FLAGS.adapter, config))
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
    rendered = {"template_date": date, "plain_user_text": FLAGS.plain_user_text}
    return summary | rendered, rows


def template_date() -> str:
  """The day that templates show: as told, else as in the run that made the model, else today."""
  if FLAGS.template_date:
    return check_date(FLAGS.template_date)
  made = Path(FLAGS.adapter or FLAGS.model).parent  # a run folder holds model/ and adapter/
  return recorded(made, "template_date") or datetime.date.today().isoformat()


def read_evaluation(out: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """The summary and the rows of an earlier evaluation.

  Raises:
    ValueError: the completions there are those of another evaluation.
  """
  scores, completions = out_paths(out)
  summary = json.loads(scores.read_text(encoding="utf-8"))
  if "settings" in summary:
    summary["settings"] = {"parse": "strict"} | summary["settings"]  # once, there was no other
  if not completions.exists():  # once, all JSON files of a folder shared one file of completions
    completions = completions.with_name("completions.jsonl")
  lines = completions.read_text(encoding="utf-8").split("\n")  # splitlines would split texts, too
  rows = [json.loads(line) for line in lines if line]
  if not belong_together(summary, rows):
    raise ValueError(f"{completions} does not hold the completions of {scores}: evaluate again")
  return summary, rows


def belong_together(summary: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
  """Whether as many rows, with the same mean reward and length, were summed up."""
  if not {"n", "samples", "reward_mean", "completion_tokens"} <= summary.keys():
    return False  # some other JSON file
  if not rows or len(rows) != summary["n"] * summary["samples"]:
    return False
  mean = lambda name: math.fsum(row[name] for row in rows) / len(rows)
  same = lambda name, found: math.isclose(summary[name], found, rel_tol=1e-9, abs_tol=1e-9)
  return same("reward_mean", mean("reward")) and same("completion_tokens", mean("tokens"))


if __name__ == "__main__":
  app.run(main)
