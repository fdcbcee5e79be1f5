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

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from grpo_jax.grid import Cell, axis_values, grid, without_idle_weights
from grpo_jax.rewards import TIERS, JudgeConfig, RewardConfig, RewardWeights, load_reward
from grpo_jax.stop_signals import EXIT_STOPPED, Stopped
from grpo_jax.sweep import check_sweep, run_sweep, write_results

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
KINDS = {"float": float, "int": int, "bool": bool}
WEIGHTS = {field.name: field for field in dataclasses.fields(RewardWeights)}

flags.DEFINE_string("sweep_dir", "runs/sweep_reward", "folder for the runs and the table")
flags.DEFINE_multi_string(
  "reward", list(TIERS), "what train_grpo's --reward takes; repeat it for several"
)
for weight in WEIGHTS.values():
  flags.DEFINE_list(
    weight.name, None, f"values to try, for the rewards that read it: {weight.metadata['help']}"
  )
flags.DEFINE_list("seed", ["0"], "seeds of the data order and the samples")
flags.DEFINE_bool("dry_run", False, "list the runs and stop")


def judge_of(passed_on: Sequence[str]) -> JudgeConfig | None:
  """The judge that the runs will have, if the flags that they all get name one."""
  given = dict(argument.removeprefix("--").partition("=")[::2] for argument in passed_on)
  if not given.get("judge_model"):
    return None
  judged: Any = given.get("judged", "texts")
  return JudgeConfig(given["judge_model"], given.get("judge_url"), judged=judged)


def cells(judge: JudgeConfig | None) -> list[Cell]:
  """The runs of the sweep, checked; the seed varies slowest, so that a part is a comparison too."""
  axes = {
    "seed": axis_values("seed", FLAGS.seed, int),
    "reward": axis_values("reward", FLAGS.reward, str),
  }
  for name, field in WEIGHTS.items():
    if FLAGS[name].value is not None:
      axes[name] = axis_values(name, FLAGS[name].value, KINDS[str(field.type)])
  found = without_idle_weights(grid(axes))
  for name in axes:
    if not any(name in cell.settings for cell in found):
      raise ValueError(f"--{name} is read by none of the rewards {', '.join(FLAGS.reward)}")
  for cell in found:
    settings = dict(cell.settings)
    seed, reward = settings.pop("seed"), settings.pop("reward")
    try:
      if int(seed) < 0:
        raise ValueError("the seed must not be negative")
      weights = RewardWeights(**settings)  # type: ignore[arg-type]
      load_reward(str(reward), RewardConfig(weights=weights, judge=judge)).close()
    except ValueError as error:
      raise ValueError(f"{cell.name}: {error}") from error
  return found


def main(argv: list[str]) -> None:
  script, folder = Path(__file__).with_name("train_grpo.py"), Path(FLAGS.sweep_dir)
  own_flags = ("seed", "reward", *WEIGHTS)
  try:
    runs = cells(judge_of(argv[1:]))
    check_sweep(runs, folder, argv[1:], own_flags)
    print("\n".join([f"{len(runs)} runs", *(f"  {run.name}" for run in runs)]), flush=True)
    if FLAGS.dry_run:
      return
    failed = run_sweep(runs, folder, [sys.executable, str(script)], argv[1:], own_flags=own_flags)
  except Stopped as stopped:
    print(f"sweep_reward: {stopped}; run the same command again to go on", file=sys.stderr)
    sys.exit(EXIT_STOPPED)
  except ValueError as error:
    sys.exit(f"sweep_reward: {error}")
  print(f"\n{write_results(runs, folder)}\n\nsweep folder: {folder}")
  if failed:
    sys.exit(f"sweep_reward: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
  app.run(main)
