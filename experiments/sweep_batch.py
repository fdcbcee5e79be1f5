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

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from grpo_jax.grid import Cell, axis_values, grid, with_equal_completions
from grpo_jax.grpo import GRPOConfig
from grpo_jax.run_config import RunConfig
from grpo_jax.sampling import SamplingConfig
from grpo_jax.stop_signals import EXIT_STOPPED, Stopped
from grpo_jax.sweep import check_sweep, run_sweep, write_results

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
AXES = (
  "seed",
  "prompts_per_step",
  "group_size",
  "micro_batch_prompts",
  "minibatches",
  "inner_updates",
)
flags.DEFINE_string("sweep_dir", "runs/sweep_batch", "folder for the runs and the table")
flags.DEFINE_list("prompts_per_step", ["6", "12"], "prompts a step")
flags.DEFINE_list("group_size", ["4", "8"], "candidates sampled for each prompt (G)")
flags.DEFINE_list("micro_batch_prompts", ["0"], "prompts in one backward pass; 0: a minibatch")
flags.DEFINE_list("minibatches", ["1"], "optimizer steps a pass over the batch")
flags.DEFINE_list("inner_updates", ["1"], "passes over each batch of completions (mu)")
flags.DEFINE_list("seed", ["0"], "seeds of the data order and the samples")
flags.DEFINE_integer(
  "completions", None, "completions sampled by each run in all; sets its steps", lower_bound=1
)
flags.DEFINE_bool("dry_run", False, "list the runs and stop")


def cells() -> list[Cell]:
  """The runs of the sweep, checked; the seed varies slowest, so that a part is a comparison too."""
  found = grid({name: axis_values(name, FLAGS[name].value, int) for name in AXES})
  for cell in found:
    batch = {name: int(value) for name, value in cell.settings.items()}
    try:
      grpo = GRPOConfig(
        sampling=SamplingConfig(group_size=batch["group_size"]),
        micro_batch_prompts=batch["micro_batch_prompts"],
        minibatches=batch["minibatches"],
        inner_updates=batch["inner_updates"],
      )
      RunConfig("", prompts_per_step=batch["prompts_per_step"], seed=batch["seed"], grpo=grpo)
    except ValueError as error:
      raise ValueError(f"{cell.name}: {error}") from error
  return with_equal_completions(found, FLAGS.completions) if FLAGS.completions else found


def main(argv: list[str]) -> None:
  script, folder = Path(__file__).with_name("train_grpo.py"), Path(FLAGS.sweep_dir)
  own_flags = (*AXES, "steps") if FLAGS.completions else AXES
  try:
    runs = cells()
    check_sweep(runs, folder, argv[1:], own_flags)
    print("\n".join([f"{len(runs)} runs", *(f"  {run.name}" for run in runs)]), flush=True)
    if FLAGS.dry_run:
      return
    failed = run_sweep(runs, folder, [sys.executable, str(script)], argv[1:], own_flags=own_flags)
  except Stopped as stopped:
    print(f"sweep_batch: {stopped}; run the same command again to go on", file=sys.stderr)
    sys.exit(EXIT_STOPPED)
  except ValueError as error:
    sys.exit(f"sweep_batch: {error}")
  print(f"\n{write_results(runs, folder)}\n\nsweep folder: {folder}")
  if failed:
    sys.exit(f"sweep_batch: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
  app.run(main)
