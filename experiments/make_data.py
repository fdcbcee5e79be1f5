"""Writes tool-calling tasks, one JSONL file a split: synthetic ones, or ones over your own tools.

python experiments/make_data.py --out=runs/data
python experiments/make_data.py --register=natural --out=runs/natural
python experiments/make_data.py --tools=my_tools.json --size=1500 --out=runs/mine
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.tasks.jsonl import data_sha256, load_tasks, read_tools, write_jsonl
from grpo_jax.tasks.summary import data_summary
from grpo_jax.tasks.synthetic.natural import NATURAL_SIZES, generate_natural
from grpo_jax.tasks.synthetic.own_tools import OWN_SIZES, own_rows, sayable
from grpo_jax.tasks.synthetic.paraphrase import paraphrased, paraphraser
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
  "system message; `tools`, a field that the model's own chat template renders. All other tasks "
  "have both",
)
for _split in dict.fromkeys(split for of in SIZES.values() for split in of):
  _default = ", ".join(f"{of[_split]} ({name})" for name, of in SIZES.items() if _split in of)
  flags.DEFINE_integer(
    f"{_split}_size", None, f"tasks in {_split}.jsonl; default: {_default}", lower_bound=1
  )
flags.DEFINE_string(
  "tools", None, "JSON file with a list of your tools' schemas: train.jsonl and held_out.jsonl"
)
flags.DEFINE_integer(
  "size", None, "with --tools: tasks in train.jsonl; default: 1500", lower_bound=1
)
flags.DEFINE_integer(
  "held_out_size", None, "with --tools: tasks in held_out.jsonl; default: 200", lower_bound=1
)
flags.DEFINE_string(
  "paraphraser",
  None,
  "with --tools: OpenAI-compatible endpoint, such as http://host:8000/v1, of a model that rewrites "
  "the requests; a rewrite that loses a value is not kept. OPENAI_API_KEY is its key",
)
flags.DEFINE_string("paraphraser_model", None, "that model, by its name at the endpoint")


def splits() -> Iterator[tuple[str, list[dict[str, Any]]]]:
  """Yields the name and the rows of each file."""
  if FLAGS.tools:
    yield from own_splits()
    return
  for split in SIZES[FLAGS.register]:
    size = FLAGS[f"{split}_size"].value
    if FLAGS.register == "natural":
      yield split, generate_natural(FLAGS.seed, split, size)
    else:
      yield split, generate(FLAGS.seed, split, size, FLAGS.style or "system")


def own_splits() -> Iterator[tuple[str, list[dict[str, Any]]]]:
  """Yields the name and the rows of each file of tasks over the user's tools."""
  specs = read_tools(FLAGS.tools)
  for problem in sayable(specs, "train")[1]:
    print(f"left out: {problem}")
  model = None
  if FLAGS.paraphraser:
    model = paraphraser(FLAGS.paraphraser_model, FLAGS.paraphraser)
  for part in OWN_SIZES:
    rows = own_rows(specs, FLAGS.seed, part, FLAGS.size if part == "train" else FLAGS.held_out_size)
    if model is not None:
      rows, counts = paraphrased(rows, model, FLAGS.seed)
      print(f"{part}: {', '.join(f'{number} {name}' for name, number in counts.items())}")
    yield part, rows


def check_flags() -> None:
  """Refuses flags that would change nothing."""
  given = lambda *names: [f"--{name}" for name in names if FLAGS[name].value is not None]
  own = ("size", "held_out_size", "paraphraser", "paraphraser_model")
  wrong, where = given(*own), "is for --tools"
  if FLAGS.tools:
    wrong = given("style", *(f"{split}_size" for of in SIZES.values() for split in of))
    wrong += ["--register"] if FLAGS["register"].present else []
    where = "does not go with --tools"
    if bool(FLAGS.paraphraser) != bool(FLAGS.paraphraser_model):
      raise app.UsageError("--paraphraser and --paraphraser_model go together")
  elif not wrong and FLAGS.register == "natural":
    wrong, where = given("style"), "is for --register=plain"
  elif not wrong:
    wrong, where = given("warm_size"), "is for --register=natural"
  if wrong:
    raise app.UsageError(f"{wrong[0]} {where}")


@command_line.script()
def main(argv: list[str]) -> None:
  check_flags()
  for split, rows in splits():
    path = Path(FLAGS.out) / f"{split}.jsonl"
    write_jsonl(rows, path)
    tasks = load_tasks(path)
    print(f"{path}  sha256 {data_sha256(tasks)}\n{data_summary(tasks)}\n")


if __name__ == "__main__":
  app.run(main)
