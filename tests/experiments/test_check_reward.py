"""The script that attacks a reward, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax.tasks.synthetic.splits import generate

SCRIPT = Path(__file__).parents[2] / "experiments" / "check_reward.py"


def check(*flags: str) -> subprocess.CompletedProcess[str]:
  command = [sys.executable, str(SCRIPT), *flags]
  return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
  path = tmp_path_factory.mktemp("data") / "train.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in generate(0, "train", 40)))
  return f"--data={path}"


def test_a_sound_reward_exits_with_zero(data):
  done = check(data, "--partial_execute=0.25")
  assert done.returncode == 0, done.stderr
  assert "No holes found." in done.stdout
  assert "| execute | wrong value | slip | 24 | 0.250 | 0.250 |" in done.stdout


def test_holes_exit_with_one_and_are_written_as_json(data, tmp_path):
  (tmp_path / "mine.py").write_text(
    "def answered(completion, task):\n"
    "  if not completion: raise RuntimeError('empty')\n"
    "  return 1.0\n"
  )
  out = tmp_path / "found.json"
  reward = f"--reward={tmp_path / 'mine.py'}:answered"
  done = check(data, reward, "--limit=10", f"--json={out}", "--reward_workers=1")
  assert done.returncode == 1, done.stderr
  assert "- the constant answer" in done.stdout
  assert "RuntimeError: empty" in done.stdout
  found = json.loads(out.read_text())
  assert found["reward"] == "answered"
  assert found["failures"] == [["reward_error", 20]]
  assert {row["behavior"] for row in found["attacks"]} <= {"execute", "clarify", "refuse"}


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--reward=best"], "expected one of tiered"),
    (["--exact=0.1"], "must not exceed exact"),
    (["--data=/nowhere.jsonl"], "/nowhere.jsonl"),
  ],
)
def test_what_cannot_be_loaded_exits_with_two_and_one_sentence(data, flags, said):
  done = check(data, *flags)
  assert done.returncode == 2
  assert said in done.stderr and "Traceback" not in done.stderr
