"""A step is replayed from its checkpoint as it was recorded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax import train as training
from grpo_jax.replay import replay


def test_replay_finds_a_step_as_it_was_recorded(whole, tmp_path):
  before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
  found = replay(whole, 3)
  assert (found.step, found.start, found.notes) == (3, 2, ())
  assert set(found.equal) == {
    "batch", "completions", "rewards", "advantages", "update", "parameters"
  }  # fmt: skip
  assert all(found.equal.values())
  assert replay(whole, 0).start == 0
  assert before == {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
  shutil.copytree(whole, tmp_path / "run")
  file = tmp_path / "run" / "rollouts" / "step_000003.jsonl"
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  rows[1]["completions"][0] += "!"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  last = json.loads(lines[3])
  lines[3] = json.dumps(last | {"loss": last["loss"] + 1e-6})
  (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  found = replay(tmp_path / "run", 3)
  assert not found.equal["completions"] and not found.equal["update"]
  assert found.equal["batch"] and found.equal["rewards"] and found.equal["parameters"]
  assert "completions differ at 1 of 2 prompts" in found.notes
  with pytest.raises(ValueError, match="no record of step 4; it has 4 steps"):
    replay(whole, 4)
  script = Path(training.__file__).parents[1] / "experiments" / "replay.py"
  said = subprocess.run(
    [sys.executable, str(script), f"--run={tmp_path / 'run'}", "--step=3"],
    capture_output=True, text=True,
  )  # fmt: skip
  assert said.returncode == 1 and "completions  DIFFERENT" in said.stdout, said.stderr[-2000:]
