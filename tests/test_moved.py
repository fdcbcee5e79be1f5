"""Import paths of 0.1 work, with a warning, and the page about them is whole."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax._moved import MOVED

PAGE = (Path(__file__).parents[1] / "docs" / "moving.md").read_text(encoding="utf-8")
# One name of each that people are likely to import.
NAMES = {
  "algorithms": "group_advantages",
  "data": "load_tasks",
  "data.jsonl": "load_tasks",
  "data.synthetic": "generate",
  "programs": "sample_program",
  "rewards.parser": "parse",
  "run": "read_tasks",
  "run_config": "RunConfig",
  "run_folder": "write_text",
  "schema": "ToolTask",
  "text": "render",
  "tracking": "read_metrics",
  "training": "train",
}


@pytest.mark.parametrize("old", MOVED)
def test_new_paths_exist_and_are_in_the_page(old):
  for home in MOVED[old]:
    importlib.import_module(f"grpo_jax.{home}")
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `grpo_jax.{old}` "))
    assert f"`grpo_jax.{home}`" in row


def test_old_paths_work_with_a_warning_each():
  program = "import warnings\nwith warnings.catch_warnings(record=True) as told:\n"
  program += "  warnings.simplefilter('always')\n"
  for old, name in NAMES.items():
    program += f"  from grpo_jax.{old} import {name}\n"
  program += "  from grpo_jax.report import write_report\n"
  program += "for one in told:\n  print(one.category.__name__, one.filename, one.message)"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  for old in NAMES:
    assert (
      f"DeprecationWarning <string> grpo_jax.{old} is now grpo_jax.{MOVED[old][0]}" in done.stdout
    )
  assert "<string> grpo_jax.report is now grpo_jax.report.page" in done.stdout


def test_a_name_that_is_gone_points_to_the_page():
  with pytest.warns(DeprecationWarning, match=r"docs/moving\.md"):
    old = importlib.reload(importlib.import_module("grpo_jax.algorithms"))
  with pytest.raises(AttributeError, match=r"LossSums.*docs/moving\.md"):
    old.LossSums  # noqa: B018


def test_the_names_that_others_rely_on_are_there():
  names = {
    "models": ("load_pretrained", "save_pretrained", "forward"),
    "sampling": ("generate",),
    "rewards": ("score", "load_reward"),
    "tasks": ("ToolTask", "load_tokenizer", "render"),
    "losses": ("group_advantages", "token_weights", "grpo"),
  }
  for module, wanted in names.items():
    found = importlib.import_module(f"grpo_jax.{module}")
    assert all(hasattr(found, name) for name in wanted)
