"""The planner's script over several machines, run as a user runs it; `tests/planner` has one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from grpo_jax.models import DecoderConfig

ROOT = Path(__file__).parents[2]
CONFIG = DecoderConfig(512, 128, 192, 2, 4, 2, 32)


def plans(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
  command = [sys.executable, str(ROOT / "experiments" / "plan.py"), *flags]
  environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
  return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_plans_of_all_combinations_are_a_table_and_are_kept(tmp_path):
  config, folder = tmp_path / "config.json", tmp_path / "plans"
  config.write_text(json.dumps(CONFIG.to_hf()), encoding="utf-8")
  shape = ["--prompts_per_step=8", "--group_size=2", "--max_prompt_tokens=32",
           "--max_completion_tokens=8", f"--model={config}", f"--json={folder}"]  # fmt: skip
  done = plans(*shape, "--topology=h100:8", "--lora_rank=0,4")
  assert done.returncode == 0, done.stderr
  cells = [[cell.strip() for cell in row.split("|")] for row in done.stdout.splitlines()]
  assert [row[2] for row in cells[2:]] == ["full", "LoRA 4"]
  assert {(row[3], row[4], row[9]) for row in cells[2:]} == {("h100:8", "fsdp:8", "yes")}
  assert len(list(folder.iterdir())) == 2

  more = plans(*shape, "--topology=h100:8,l4:8", "--lora_rank=0,4")
  assert more.stderr.count(": kept") == more.stderr.count(": planning") == 2, more.stderr
  assert more.stdout.splitlines()[2] == done.stdout.splitlines()[2]
  # Other flags are other plans.
  again = plans(*shape, "--topology=h100:8", "--lora_rank=0,4", "--remat=layers")
  assert again.stderr.count(": planning") == 2, again.stderr
  # So are those for another share of a GPU's memory.
  share = plans(*shape, "--topology=h100:8", "--lora_rank=0,4", "--remat=layers",
                XLA_CLIENT_MEM_FRACTION="0.9")  # fmt: skip
  assert share.stderr.count(": planning") == 2, share.stderr


def test_what_is_wrong_with_one_plan_is_said_before_any_work():
  done = plans("--topology=h100:8,v9:2", "--lora_rank=0")
  assert done.returncode != 0 and "unknown chip 'v9'" in done.stderr
  assert "planning" not in done.stderr
  done = plans("--lora_rank=0,x")
  assert "--lora_rank=x must be a whole number" in done.stderr
