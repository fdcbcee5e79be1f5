"""Which steps are traced, and what the table of phases says."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

from grpo_jax.benchmarking.profiling import phase_table, profiled_steps

WORK = jax.jit(lambda x: jnp.sin(x) @ x)


def run(folder, steps, count):
  """A training loop in small; returns the steps that it took."""
  taken = []
  with (folder / "metrics.jsonl").open("w") as file:
    for step in profiled_steps(range(3, 3 + steps), folder, count):
      WORK(jnp.ones((8, 8))).block_until_ready()
      metrics = {"step": step, "seconds/sample": 0.5 * step, "seconds/update": 1.0, "loss": 2.0}
      file.write(json.dumps(metrics) + "\n")
      file.flush()
      taken.append(step)
  return taken


def test_the_steps_after_the_first_are_traced_and_tabled(tmp_path):
  assert run(tmp_path, 5, 2) == [3, 4, 5, 6, 7]
  assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1
  lines = (tmp_path / "profile" / "seconds.txt").read_text().splitlines()
  # Steps 4 and 5: sampling 2 and 2.5 s, update 1 s each.
  assert [line.split() for line in lines[2:]] == [
    ["sample", "69.2%", "2.2500", "2.0000", "2.5000"],
    ["update", "30.8%", "1.0000", "1.0000", "1.0000"],
  ]


@pytest.mark.parametrize(("steps", "count", "traced"), [(3, 0, False), (1, 2, False), (2, 9, True)])
def test_short_runs_and_no_profile_change_no_step(tmp_path, steps, count, traced):
  assert run(tmp_path, steps, count) == list(range(3, 3 + steps))
  assert (tmp_path / "profile" / "seconds.txt").exists() == traced


def test_only_phases_are_in_the_table():
  text = phase_table([{"seconds/a": 1.0, "step_time": 9.0}, {"seconds/a": 3.0, "step_time": 9.0}])
  assert "step_time" not in text and "100.0%" in text and "2.0000" in text
