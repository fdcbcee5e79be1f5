"""Kills a small run many times at random moments and compares its end with an undisturbed run.

    python tests/soak_kills.py [KILLS] [SEED]

Not collected by pytest: `make soak` runs it. SIGKILL and SIGTERM take turns; the moments lie in the
start-up, the base evaluation, the steps, the checkpoints and the report alike.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from small_run import assert_same_run, command, small_run

from grpo_jax.runs.folder import whole_lines
from grpo_jax.runs.preemption import EXIT_STOPPED

STEPS = 300


def main(kills: int, seed: int) -> None:
  rng = random.Random(seed)
  folder = Path(tempfile.mkdtemp(prefix="soak-"))
  settings = small_run(folder / "policy")
  arguments = lambda name: command(settings, folder / name, STEPS, "--checkpoint_every=5")
  began = time.monotonic()
  subprocess.run(arguments("whole"), check=True, capture_output=True)
  whole_time = time.monotonic() - began
  done = 0
  for number in range(kills):
    process = subprocess.Popen(
      arguments("broken"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    # Now and then anywhere in a run's time, mostly within a few steps of where the last one ended.
    if rng.random() < 0.3:
      time.sleep(rng.uniform(0, whole_time))
    else:
      steps = lambda: len(whole_lines(folder / "broken" / "metrics.jsonl"))
      start, target = time.monotonic(), steps() + rng.randint(0, 2 * STEPS // kills)
      while process.poll() is None and steps() < target and time.monotonic() < start + 120:
        time.sleep(0.002)
      time.sleep(rng.uniform(0, 0.05))
    sent = (signal.SIGKILL, signal.SIGTERM)[number % 2]
    process.send_signal(sent)
    _, said = process.communicate(timeout=120)
    allowed = {0, -sent, EXIT_STOPPED} if sent == signal.SIGTERM else {0, -sent}
    if process.returncode not in allowed:
      sys.exit(f"kill {number}: exit status {process.returncode}\n{said[-3000:]}")
    done += process.returncode == 0
    print(f"{number}: {sent.name}, exit {process.returncode}", flush=True)
  subprocess.run(arguments("broken"), check=True, capture_output=True)
  assert_same_run(folder / "whole", folder / "broken")
  print(f"{kills} kills ({done} after the end): equal to the undisturbed run; {folder}")


if __name__ == "__main__":
  main(int(sys.argv[1]) if len(sys.argv) > 1 else 30, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
