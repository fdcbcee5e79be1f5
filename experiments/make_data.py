"""Writes the synthetic tool-calling tasks: train.jsonl, seen.jsonl and unseen.jsonl.

python experiments/make_data.py --out=runs/data
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.tasks.jsonl import data_sha256, load_tasks, write_jsonl
from grpo_jax.tasks.summary import data_summary
from grpo_jax.tasks.synthetic.prompts import STYLES
from grpo_jax.tasks.synthetic.splits import SPLIT_SIZES, SPLITS, generate

FLAGS = flags.FLAGS
flags.DEFINE_string("out", "runs/data", "folder for the three files")
flags.DEFINE_integer("seed", 0, "of the data", lower_bound=0)
flags.DEFINE_enum(
  "style",
  "system",
  STYLES,
  "where the schemas go: `system`, one JSON line a tool in the system message; `tools`, a field "
  "that the model's own chat template renders",
)
for _split in SPLITS:
  flags.DEFINE_integer(
    f"{_split}_size", SPLIT_SIZES[_split], f"tasks in {_split}.jsonl", lower_bound=1
  )


@command_line.script()
def main(argv: list[str]) -> None:
  for split in SPLITS:
    path = Path(FLAGS.out) / f"{split}.jsonl"
    write_jsonl(generate(FLAGS.seed, split, FLAGS[f"{split}_size"].value, FLAGS.style), path)
    tasks = load_tasks(path)
    print(f"{path}  sha256 {data_sha256(tasks)}\n{data_summary(tasks)}\n")


if __name__ == "__main__":
  app.run(main)
