"""The recipe, through its script, on a random policy: both stages, a stop between, the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax.report.stages import stage_table

SCRIPT = Path(__file__).parents[2] / "experiments" / "recipe.py"


@pytest.fixture(scope="module")
def recipe(settings, tmp_path_factory):
  """The arguments of a recipe of two steps a stage, and its folder."""
  folder = tmp_path_factory.mktemp("recipe")
  data = Path(settings.data)
  common = f"""
data = "{data}"
eval_data = ["held_out={data.with_name("held_out.jsonl")}"]
steps = 2
prompts_per_step = 2
max_prompt_tokens = 512
max_completion_tokens = 64
lora_rank = 2
learning_rate = 1e-2
parse = "auto"
"""
  (folder / "warm.toml").write_text(common + 'technique = "sft"\naggregation = "token"\n')
  (folder / "grpo.toml").write_text(common + "group_size = 2\n")
  command = [
    sys.executable, str(SCRIPT), f"--model={settings.model}", f"--run_dir={folder / 'run'}",
    f"--warm_preset={folder / 'warm.toml'}", f"--grpo_preset={folder / 'grpo.toml'}",
  ]  # fmt: skip
  return command, folder / "run"


def test_a_recipe_evaluates_raw_warm_and_trained_with_one_adapter(recipe):
  command, folder = recipe
  done = subprocess.run([*command, "--", "--checkpoint_every=1"], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  read = lambda path: json.loads((folder / path).read_text())
  assert read("eval_base.json") == read("warm/eval_base.json")
  assert read("eval_warm.json") == read("grpo/eval_base.json")
  assert read("eval_final.json") == read("grpo/eval_final.json")
  assert not (folder / "warm" / "eval_final.json").exists()  # GRPO begins with it
  assert read("grpo/config.json")["checkpoint_every"] == 1  # passed on
  assert read("grpo/config.json")["init_adapter"] == str(folder / "warm" / "adapter")
  assert "raw [95%]" in done.stdout and "trained - warm-started" in done.stdout
  table = stage_table(folder)
  assert [row[1] for row in table.rows] == ["all", "execute", "clarify"]
  assert f"{read('eval_warm.json')['held_out']['reward_mean']:.3f} [" in table.rows[0][4]
  assert table.markdown in (folder / "stages.md").read_text()


def test_what_has_finished_is_not_done_again(recipe):
  command, folder = recipe
  if not (folder / "stages.md").exists():
    pytest.skip("needs the finished recipe")
  files = ("warm/metrics.jsonl", "grpo/metrics.jsonl", "grpo/eval_final.json", "eval_base.json")
  before = [(folder / name).read_bytes() for name in files]
  stamp = (folder / "grpo" / "eval_final.json").stat().st_mtime_ns
  done = subprocess.run([*command, "--", "--checkpoint_every=1"], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert [(folder / name).read_bytes() for name in files] == before
  assert (folder / "grpo" / "eval_final.json").stat().st_mtime_ns == stamp
  assert "evaluating" not in done.stderr


def test_a_table_wants_stages_that_were_evaluated_alike(recipe):
  _, folder = recipe
  path = folder / "eval_warm.json"
  text = path.read_text()
  found = json.loads(text)
  found["held_out"]["settings"]["max_completion_tokens"] = 5
  path.write_text(json.dumps(found))
  with pytest.raises(ValueError, match="warm differs from base in max_completion_tokens"):
    stage_table(folder)
  path.write_text(text)
  os.remove(path)
  without = stage_table(folder)
  assert "warm-started [95%]" not in without.header and len(without.rows[0]) == 6
  path.write_text(text)
