"""The recipe for a real model: a supervised warm start, then GRPO, with evaluations around both.

    python experiments/recipe.py --model=runs/models/qwen2.5-coder-0.5b --run_dir=runs/qwen
    python experiments/recipe.py --model=Qwen/Qwen2.5-7B-Instruct --run_dir=runs/7b -- --mesh=fsdp:8

The warm start shows demonstrations of tools that are in no evaluation; GRPO goes on with the same
adapter. Both are runs of train_grpo.py with a preset each, in RUN_DIR/warm and RUN_DIR/grpo; what
follows `--` goes to both. Run again, it goes on where it was stopped.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.config import RunConfig
from grpo_jax.files.atomic import write_text
from grpo_jax.report.stages import stage_table
from grpo_jax.report.tables import as_text
from grpo_jax.runs.preemption import ChildRuns, Stopped

TRAIN = [sys.executable, str(Path(__file__).with_name("train_grpo.py"))]
FLAGS: Any = flags.FLAGS  # flags have their types at run time only
command_line.define(RunConfig, ["seed"], model="runs/models/qwen2.5-coder-0.5b")
flags.DEFINE_string("warm_preset", "qwen_warm", "preset of the warm start: a name, or a .toml file")
flags.DEFINE_string("grpo_preset", "qwen_grpo", "preset of GRPO")
flags.DEFINE_string("run_dir", "runs/qwen", "folder of the two runs and of the table of all stages")


@command_line.script(resumable=(Stopped,), arguments=True)
def main(argv: list[str]) -> int:
  command_line.check()
  run_dir = Path(FLAGS.run_dir)
  warm, grpo = run_dir / "warm", run_dir / "grpo"
  stages = [
    # What the warm start gained is what the next run begins with.
    (warm, [f"--preset={FLAGS.warm_preset}", "--evaluate_final=false"]),
    (grpo, [f"--preset={FLAGS.grpo_preset}", f"--init_adapter={warm / 'adapter'}"]),
  ]
  common = [f"--model={FLAGS.model}", f"--seed={FLAGS.seed}", *argv[1:]]
  with ChildRuns() as running:
    for folder, arguments in stages:
      if running.stopped_by:
        raise Stopped(f"stopped by {running.stopped_by} before {folder}")
      command = [*TRAIN, *arguments, *common, f"--run_dir={folder}"]
      status, memory = running.run(command, os.environ)
      if status == os.EX_TEMPFAIL:
        raise Stopped(f"stopped in {folder}")
      if status:
        return status
      print(f"{folder}: done, peak memory {memory:.2f} GiB", flush=True)
  gather(warm, grpo, run_dir)
  table = stage_table(run_dir)
  write_text(run_dir / "stages.md", f"# {table.title}\n\n{table.markdown}\n")
  print(f"\n{table.title}\n{as_text(table.header, table.rows)}\n\n{run_dir / 'stages.md'}")
  return 0


def gather(warm: Path, grpo: Path, run_dir: Path) -> None:
  """Puts the evaluations of all stages side by side, under the names of `report.stages`."""
  (run_dir / "eval").mkdir(exist_ok=True)
  for stage, run, when in (
    ("base", warm, "base"),
    ("warm", grpo, "base"),
    ("final", grpo, "final"),
  ):
    shutil.copyfile(run / f"eval_{when}.json", run_dir / f"eval_{stage}.json")
    for rows in (run / "eval").glob(f"{when}_*.jsonl"):
      split = rows.name.removeprefix(f"{when}_")
      shutil.copyfile(rows, run_dir / "eval" / f"{stage}_{split}")


if __name__ == "__main__":
  app.run(main)
