"""Scores a policy on held-out tasks, alone or beside an earlier evaluation of the same tasks.

python experiments/evaluate.py --out=runs/eval/base
python experiments/evaluate.py --model=runs/my_run/model --out=runs/eval/trained \
  --compare_with=runs/eval/base
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from absl import app, flags

from grpo_jax.data.jsonl import load_tasks, write_jsonl
from grpo_jax.data.synthetic import generate
from grpo_jax.evaluate import evaluate
from grpo_jax.models import load_pretrained
from grpo_jax.rewards import load_reward
from grpo_jax.schema import ToolTask
from grpo_jax.scores import compare
from grpo_jax.tables import as_text, gain_rows, score_rows
from grpo_jax.text import load_tokenizer, stop_token_ids

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "checkpoint folder or hub id; the embedded policy by default")
flags.DEFINE_multi_string(
  "eval_data",
  [],
  "NAME=FILE, repeatable: the tasks of one split; by default the generated `seen` and `unseen`",
)
flags.DEFINE_string("out", "runs/eval/latest", "folder for eval.json and one NAME.jsonl a split")
flags.DEFINE_string("compare_with", None, "the --out folder of an earlier evaluation")
flags.DEFINE_string("reward", "tiered", "a built-in reward, file.py:function, or a weighted list")
flags.DEFINE_integer("max_prompt_tokens", 1024, "a longer prompt is an error", lower_bound=1)
flags.DEFINE_integer("max_completion_tokens", 96, "completions are cut here", lower_bound=1)
flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token", lower_bound=0.0)
flags.DEFINE_integer("samples", 1, "completions a task; above 1 with a temperature", lower_bound=1)
flags.DEFINE_integer("seed", 0, "of the samples and of the bootstrap intervals", lower_bound=0)
flags.DEFINE_integer("batch_prompts", 16, "prompts generated at the same time", lower_bound=1)
flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "compute dtype of the decoder")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  if FLAGS.samples > 1 and FLAGS.temperature == 0:
    raise app.UsageError(f"--samples={FLAGS.samples} needs a --temperature above 0")
  try:
    splits = read_splits(FLAGS.eval_data)
    earlier = read_evaluation(Path(FLAGS.compare_with), splits) if FLAGS.compare_with else {}
    reward = load_reward(FLAGS.reward)
    summaries, rows = run(splits, reward)
  except (ValueError, FileNotFoundError) as error:
    sys.exit(f"error: {error}")

  out = Path(FLAGS.out)
  for split, found in rows.items():
    write_jsonl(found, out / f"{split}.jsonl")
  (out / "eval.json").write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
  print(as_text(*score_rows(summaries)))
  if earlier:
    compared = {
      split: compare(before, rows[split], seed=FLAGS.seed) for split, (_, before) in earlier.items()
    }
    before = {split: summary for split, (summary, _) in earlier.items()}
    print(f"\nAgainst {FLAGS.compare_with}:\n")
    print(as_text(*gain_rows(before, summaries, compared)))
  print(f"\n{out}")


def run(
  splits: Mapping[str, Sequence[ToolTask]], reward: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Evaluates every split; returns summaries and rows by split."""
  path = FLAGS.model or str(files("grpo_jax") / "assets" / "tiny")
  config, params = load_pretrained(path, dtype=FLAGS.dtype)
  tokenizer = load_tokenizer(path)
  summaries, rows = {}, {}
  with reward:
    for split, tasks in splits.items():
      summaries[split], rows[split] = evaluate(
        config,
        params,
        tokenizer,
        tasks,
        reward=reward,
        max_prompt_tokens=FLAGS.max_prompt_tokens,
        max_completion_tokens=FLAGS.max_completion_tokens,
        stop_ids=stop_token_ids(tokenizer, path),
        temperature=FLAGS.temperature,
        samples=FLAGS.samples,
        seed=FLAGS.seed,
        batch_prompts=FLAGS.batch_prompts,
      )
  return summaries, rows


def read_splits(sources: Sequence[str]) -> dict[str, list[ToolTask]]:
  """The tasks of each NAME=FILE, or of the generated splits when there is none."""
  if not sources:
    return {
      split: [ToolTask.from_row(row) for row in generate(0, split)] for split in ("seen", "unseen")
    }
  splits = {}
  for source in sources:
    name, _, path = source.partition("=")
    if not name.isidentifier() or not path or name in splits:
      raise ValueError(f"--eval_data={source}; expected NAME=FILE with a NAME of its own")
    splits[name] = load_tasks(path)
  return splits


def read_evaluation(
  folder: Path, splits: Mapping[str, Sequence[ToolTask]]
) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
  """By split, the summary and the rows of an earlier evaluation."""
  summaries = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
  missing = [split for split in splits if split not in summaries]
  if missing:
    raise ValueError(f"--compare_with={folder} has no evaluation of {', '.join(missing)}")
  return {
    split: (
      summaries[split],
      [json.loads(line) for line in (folder / f"{split}.jsonl").open(encoding="utf-8")],
    )
    for split in splits
  }


if __name__ == "__main__":
  app.run(main)
