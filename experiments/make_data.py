"""Writes synthetic tool-calling tasks, one JSONL file a split.

python experiments/make_data.py --out=runs/data
python experiments/make_data.py --register=natural --out=runs/natural
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.tasks.jsonl import data_sha256, load_tasks, write_jsonl
from grpo_jax.tasks.summary import data_summary
from grpo_jax.tasks.synthetic.natural import NATURAL_SIZES, generate_natural
from grpo_jax.tasks.synthetic.prompts import STYLES
from grpo_jax.tasks.synthetic.splits import SPLIT_SIZES, generate

SIZES: Mapping[str, Mapping[Any, int]] = {"plain": SPLIT_SIZES, "natural": NATURAL_SIZES}

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
flags.DEFINE_string("out", "runs/data", "folder for the files")
flags.DEFINE_integer("seed", 0, "of the data", lower_bound=0)
flags.DEFINE_enum(
  "register",
  "plain",
  list(SIZES),
  "how requests are worded: `plain`, values beside their arguments' names; `natural`, as people "
  "write",
)
flags.DEFINE_enum(
  "style",
  None,
  STYLES,
  "where the schemas go: `system` (the plain register's default), one JSON line a tool in the "
  "system message; `tools`, a field that the model's own chat template renders. The natural "
  "register has both",
)
for _split in dict.fromkeys(split for of in SIZES.values() for split in of):
  _default = ", ".join(f"{of[_split]} ({name})" for name, of in SIZES.items() if _split in of)
  flags.DEFINE_integer(
    f"{_split}_size", None, f"tasks in {_split}.jsonl; default: {_default}", lower_bound=1
  )


def splits() -> Iterator[tuple[str, list[dict[str, Any]]]]:
  """Yields the name and the rows of each split of the register."""
  for split in SIZES[FLAGS.register]:
    size = FLAGS[f"{split}_size"].value
    if FLAGS.register == "natural":
      yield split, generate_natural(FLAGS.seed, split, size)
    else:
      yield split, generate(FLAGS.seed, split, size, FLAGS.style or "system")


@command_line.script()
def main(argv: list[str]) -> None:
  if FLAGS.register == "natural" and FLAGS.style:
    raise app.UsageError("--style is for --register=plain; the natural register has both styles")
  if FLAGS.register == "plain" and FLAGS.warm_size:
    raise app.UsageError("--warm_size is for --register=natural")
  for split, rows in splits():
    path = Path(FLAGS.out) / f"{split}.jsonl"
    write_jsonl(rows, path)
    tasks = load_tasks(path)
    print(f"{path}  sha256 {data_sha256(tasks)}\n{data_summary(tasks)}\n")


if __name__ == "__main__":
  app.run(main)
