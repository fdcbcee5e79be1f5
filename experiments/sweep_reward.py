"""Trains with several rewards and compares what each one brought.

python experiments/sweep_reward.py --seed=0,1,2 -- --preset=tiny
python experiments/sweep_reward.py --reward=tiered --partial_execute=0,0.25,0.5 -- --preset=tiny
python experiments/sweep_reward.py --reward=tiered --reward=judge -- --preset=tiny \\
  --judge_model=m --judge_url=http://localhost:8000/v1

Each reward, with each of the numbers given, is trained under each seed in a process of its own;
what follows `--` goes to experiments/train_grpo.py as it is. Run again, it skips what has finished
and goes on with what was stopped. The table scores every run by the same reward (`tiered`, default
numbers), since rewards in coins of their own cannot be compared.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.config import RunConfig
from grpo_jax.rewards import TIERS, JudgeConfig, RewardWeights, load_reward
from grpo_jax.runs.preemption import Stopped
from grpo_jax.settings import build, settings_of
from grpo_jax.sweeps.grid import Cell, grid, without_idle_weights
from grpo_jax.sweeps.sweep import run_sweep

TRAIN = [sys.executable, str(Path(__file__).with_name("train_grpo.py"))]
FLAGS: Any = flags.FLAGS  # flags have their types at run time only
# The seed varies slowest, so that a part of the sweep is a comparison too.
command_line.define(RunConfig, [], axes=True, seed=["0"], reward=list(TIERS))
command_line.define(RewardWeights, axes=True)
flags.DEFINE_string("sweep_dir", "runs/sweep_reward", "folder for the runs and the table")
flags.DEFINE_bool("dry_run", False, "list the runs and stop")


def judge_of(passed_on: Sequence[str]) -> JudgeConfig | None:
  """The judge that the runs will have, if the flags that they all get name one."""
  given = dict(argument.removeprefix("--").partition("=")[::2] for argument in passed_on)
  known = settings_of(JudgeConfig)
  values = {name: known[name].read(text) for name, text in given.items() if name in known}
  return build(JudgeConfig, values) if values.get("judge_model") else None


def cells(judge: JudgeConfig | None) -> list[Cell]:
  """The runs of the sweep, checked."""
  axes = command_line.axes()
  found = without_idle_weights(grid(axes))
  for name in axes:
    if not any(name in cell.settings for cell in found):
      raise ValueError(f"--{name} is read by none of the rewards {', '.join(FLAGS.reward)}")
  for cell in found:
    try:
      config = build(RunConfig, {"run_dir": cell.name, **cell.settings}).reward_config
      load_reward(str(cell.settings["reward"]), dataclasses.replace(config, judge=judge)).close()
    except ValueError as error:
      raise ValueError(f"{cell.name}: {error}") from error
  return found


@command_line.script(resumable=(Stopped,), arguments=True)
def main(argv: list[str]) -> int:
  runs = cells(judge_of(argv[1:]))
  own_flags = {"seed", "reward", *settings_of(RewardWeights)}
  failed = run_sweep(
    runs, Path(FLAGS.sweep_dir), TRAIN, argv[1:], own_flags=own_flags, dry_run=FLAGS.dry_run
  )
  return 1 if failed else 0


if __name__ == "__main__":
  app.run(main)
