"""Runs a results folder's commands again, into a new run folder, and compares what comes out.

    python experiments/reproduce.py experiments/results/natural
    python experiments/reproduce.py runs/mine --collect=natural

On the same kind of processor with the same packages, metrics.jsonl, eval_*.json and the adapters
must be the same to the bit, times aside; elsewhere each mean reward must lie within its recorded
95% interval. Prints a table; the exit status is 1 where something differs. The commands take as
long as they took: `command.txt` says which, and a folder's `metrics.jsonl` how long. The same
--run_dir again goes on with what was interrupted.

With --collect=NAME nothing is run: what belongs into `experiments/results/NAME` is copied out of a
finished run folder (adapters in bfloat16, 20 MB at most each and 60 MB in all).
"""

import time
from pathlib import Path

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.report.tables import as_text
from grpo_jax.results import collect, compare_with, run_again

FLAGS = flags.FLAGS
flags.DEFINE_string("run_dir", "", "new run folder; empty: runs/reproduce-<folder>-<time>")
flags.DEFINE_string("collect", "", "make this results folder (a name, or a path) of a run folder")
flags.DEFINE_string(
  "commands", "", "--collect: file of the commands that lead to the run; empty: its settings"
)
flags.DEFINE_string("warm", "", "--collect: folder of the adapters that the run began with")

ROOT = Path(__file__).resolve().parents[1]


@command_line.script(arguments=True)
def main(argv: list[str]) -> int:
  if len(argv) != 2:
    what = f"unexpected arguments: {' '.join(argv[2:])}" if argv[2:] else "which folder?"
    raise app.UsageError(what)
  folder = Path(argv[1])
  if FLAGS.collect:
    results = Path(FLAGS.collect)
    if results.name == FLAGS.collect:
      results = ROOT / "experiments" / "results" / results
    commands = Path(FLAGS.commands).read_text(encoding="utf-8") if FLAGS.commands else ""
    warm = Path(FLAGS.warm) if FLAGS.warm else None
    collect(folder, results, root=ROOT, commands=commands, warm=warm)
    print("\n".join(sorted(str(p) for p in results.rglob("*") if p.is_file())))
    return 0
  default = f"runs/reproduce-{folder.resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"
  run_dir = Path(FLAGS.run_dir or default)
  moved = run_again(folder, run_dir, root=ROOT)
  found = compare_with(folder, run_dir, root=ROOT, moved=moved)
  print("\nbit for bit" if not found.elsewhere else "\nwithin the 95% intervals, because of")
  print("".join(f"  {words}\n" for words in found.elsewhere))
  rows = [(row.file, row.what, row.then, row.now, row.verdict) for row in found.rows]
  print(as_text(("file", "what", "recorded", "now", ""), rows, grouped=False))
  print(f"\n{folder} is {'' if found.reproduced else 'NOT '}reproduced by {run_dir}")
  return 0 if found.reproduced else 1


if __name__ == "__main__":
  app.run(main)
