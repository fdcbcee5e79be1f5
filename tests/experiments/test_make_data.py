from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from grpo_jax.tasks.jsonl import load_tasks
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.synthetic.natural import NATURAL_SPLITS, generate_natural
from grpo_jax.tasks.synthetic.splits import SPLITS, generate

SCRIPT = Path(__file__).parents[2] / "experiments" / "make_data.py"


def run(*flags: str) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True)


def test_script_writes_the_rows_that_the_generator_makes_in_memory(tmp_path):
  sizes = [f"--{split}_size=20" for split in SPLITS]
  done = run(f"--out={tmp_path}", "--seed=3", "--style=tools", *sizes)
  assert done.returncode == 0, done.stderr
  for split in SPLITS:
    wanted = [ToolTask.from_row(row) for row in generate(3, split, 20, "tools")]
    assert load_tasks(tmp_path / f"{split}.jsonl") == wanted
    assert f"{split}.jsonl  sha256 " in done.stdout
  assert "execute 12 (60%)" in done.stdout


def test_script_refuses_senseless_flags_before_it_writes(tmp_path):
  for flag in ("--style=xml", "--train_size=0", "--seed=-1"):
    assert run(f"--out={tmp_path / 'x'}", flag).returncode != 0
  assert not (tmp_path / "x").exists()


def test_natural_register_writes_its_four_splits(tmp_path):
  sizes = [f"--{split}_size=20" for split in NATURAL_SPLITS]
  done = run(f"--out={tmp_path}", "--seed=3", "--register=natural", *sizes)
  assert done.returncode == 0, done.stderr
  for split in NATURAL_SPLITS:
    wanted = [ToolTask.from_row(row) for row in generate_natural(3, split, 20)]
    assert load_tasks(tmp_path / f"{split}.jsonl") == wanted


def test_flags_of_the_other_register_are_refused(tmp_path):
  for flags in (("--register=natural", "--style=tools"), ("--warm_size=20",)):
    done = run(f"--out={tmp_path / 'x'}", *flags)
    assert done.returncode != 0 and "--register=" in done.stderr + done.stdout
  assert not (tmp_path / "x").exists()
