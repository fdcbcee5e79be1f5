"""Trains a tool-calling policy with GRPO and shows what it gained.

    python experiments/train_grpo.py --preset=tiny
    python experiments/train_grpo.py --model=Qwen/Qwen2.5-0.5B-Instruct --data=tasks.jsonl \\
      --eval_data=held_out=held_out.jsonl --run_dir=runs/mine
"""

import logging
import time
from pathlib import Path

import jax
from absl import app, flags

from grpo_jax import command_line
from grpo_jax.config import RunConfig, read_preset
from grpo_jax.report.page import gain_table
from grpo_jax.report.tables import as_text
from grpo_jax.runs import console, hosts
from grpo_jax.runs.preemption import Stopped
from grpo_jax.train import TrainingFailed, train

FLAGS = flags.FLAGS
command_line.define(RunConfig)
flags.DEFINE_string(
  "preset", None, "settings of a known job, tiny or a .toml file of them; flags that are given win"
)
flags.DEFINE_string("coordinator", "", "host:port of process 0, if no cluster environment tells")
flags.DEFINE_integer("num_processes", 0, "processes (hosts) in all; 0: from the environment")
flags.DEFINE_integer("process_id", -1, "number of this process, from 0; -1: from the environment")


def run_config() -> RunConfig:
  """The flags as one checked configuration."""
  if FLAGS.preset:
    command_line.use(read_preset(FLAGS.preset), f"--preset={FLAGS.preset}")
  name = Path(FLAGS.preset or FLAGS.technique).stem
  default = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
  return command_line.read(RunConfig, run_dir=FLAGS.run_dir or default)


@command_line.script(TrainingFailed, resumable=(Stopped,))
def main(argv: list[str]) -> None:
  try:
    config = run_config()
    with console.quiet(Path(config.run_dir)):
      hosts.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
      if jax.process_count() > 1 and not FLAGS.run_dir:
        raise ValueError("several hosts need one --run_dir: its default holds the time of each")
      folder = train(config)
  except Exception as error:
    if jax.process_count() > 1 and not isinstance(error, Stopped):
      logging.getLogger("grpo_jax").exception("this host ends")
      hosts.leave(error)
    raise
  if not hosts.is_first():
    return
  table = gain_table(folder)
  print(f"\n{table.title} ({config.reward} reward)\n{as_text(table.header, table.rows)}")
  print(f"\nrun folder: {folder}   page: {folder / 'report.html'}")


if __name__ == "__main__":
  app.run(main)
