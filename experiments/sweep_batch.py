"""Trains with several batch settings and compares what each one brought and cost.

python experiments/sweep_batch.py --prompts_per_step=6,12 --group_size=4,8 --seed=0,1 -- \\
  --preset=tiny
python experiments/sweep_batch.py --prompts_per_step=6,12 --group_size=4,8 --completions=5760 -- \\
  --preset=tiny

Every combination is trained under each seed in a process of its own; what follows `--` goes to
experiments/train_grpo.py as it is. Run again, it skips what has finished and goes on with what was
stopped. With `--completions` each run takes as many steps as sample that many completions, so that
all have the same budget; without it, all take the same number of steps.
"""

import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.config import RunConfig
from grpo_jax.runs.preemption import Stopped
from grpo_jax.settings import build, settings_of
from grpo_jax.sweeps.grid import Cell, grid, with_equal_completions
from grpo_jax.sweeps.sweep import run_sweep

TRAIN = [sys.executable, str(Path(__file__).with_name("train_grpo.py"))]
FLAGS: Any = flags.FLAGS  # flags have their types at run time only
# Whatever changes a run's numbers may vary. The seed does so slowest: a part is a comparison too.
command_line.define(
  RunConfig,
  axes=True,
  without=[name for name, found in settings_of(RunConfig).items() if found.free or found.many],
  seed=["0"],
  prompts_per_step=["6", "12"],
  group_size=["4", "8"],
  micro_batch_prompts=["0"],
  minibatches=["1"],
  inner_updates=["1"],
)
flags.DEFINE_string("sweep_dir", "runs/sweep_batch", "folder for the runs and the table")
flags.DEFINE_integer(
  "completions", None, "completions sampled by each run in all; sets its steps", lower_bound=1
)
flags.DEFINE_bool("dry_run", False, "list the runs and stop")


def cells() -> list[Cell]:
  """The runs of the sweep, checked."""
  found = grid(command_line.axes())
  for cell in found:
    try:
      build(RunConfig, {"run_dir": cell.name, **cell.settings})
    except ValueError as error:
      raise ValueError(f"{cell.name}: {error}") from error
  return with_equal_completions(found, FLAGS.completions) if FLAGS.completions else found


@command_line.script(resumable=(Stopped,), arguments=True)
def main(argv: list[str]) -> int:
  runs = cells()
  own_flags = {name for run in runs for name in run.settings}
  failed = run_sweep(
    runs, Path(FLAGS.sweep_dir), TRAIN, argv[1:], own_flags=own_flags, dry_run=FLAGS.dry_run
  )
  return 1 if failed else 0


if __name__ == "__main__":
  app.run(main)
