"""Both sweeps, through their scripts, on a random policy so small that a run is mostly start-up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from small_run import signal_defaults

from grpo_jax.models import DecoderConfig, init_params, save_pretrained
from grpo_jax.runs.installation import TINY_MODEL
from grpo_jax.runs.preemption import EXIT_STOPPED
from grpo_jax.sweeps.sweep import is_finished
from grpo_jax.tasks.jsonl import write_jsonl
from grpo_jax.tasks.synthetic.splits import generate
from grpo_jax.tasks.train_tokenizer import save_tokenizer, train_tokenizer

TOOL = {
  "name": "f",
  "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  texts = [row["prompt"][0]["content"] for row in generate(0, "train", 100)]
  tokenizer = train_tokenizer(texts, 512, ["the", "to"])
  template = (TINY_MODEL / "chat_template.jinja").read_text(encoding="utf-8")
  save_tokenizer(tokenizer, folder, template)
  end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
  config = DecoderConfig(
    512, 16, 32, 1, 2, 1, 8, tie_embeddings=True, eos_token_ids=(end,), pad_token_id=pad,
    max_position_embeddings=2048,
  )  # fmt: skip
  save_pretrained(config, init_params(config, jax.random.key(0)), folder)
  return folder


def run(script: str, *flags: str, **environment: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, str(EXPERIMENTS / f"{script}.py"), *flags],
    capture_output=True,
    text=True,
    env={**os.environ, **environment},
  )


@pytest.fixture(scope="module")
def common(model, tmp_path_factory) -> list[str]:
  """What every run gets: the policy, and four short tasks for training and evaluation."""
  rows = [
    {
      "prompt": [{"role": "user", "content": f"call f with x {i}"}],
      "tools": [{"type": "function", "function": TOOL}],
      "reward_model": {"ground_truth": truth},
    }
    for i, truth in enumerate(
      ('[{"name": "f", "arguments": {"x": 0}}]', "Which x?", "Sorry, I can't.", "Sorry, I can't.")
    )
  ]
  path = tmp_path_factory.mktemp("data") / "tasks.jsonl"
  write_jsonl(rows, path)
  return [
    "--", f"--model={model}", f"--data={path}", f"--eval_data=own={path}",
    "--max_completion_tokens=8",
  ]  # fmt: skip


def test_rewards_are_compared_by_one_reward_and_finished_runs_are_skipped(common, tmp_path):
  flags = [
    f"--sweep_dir={tmp_path}", "--reward=binary", "--reward=toolrl", *common,
    "--steps=1", "--prompts_per_step=2", "--group_size=2",
  ]  # fmt: skip
  done = run("sweep_reward", *flags)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "sweep.json").read_text())
  runs = {entry["settings"]["reward"]: entry for entry in found["runs"]}
  assert found["scored_by"] == "tiered" and set(runs) == {"binary", "toolrl"}
  same = [entry["splits"]["own"]["base_mean"] for entry in runs.values()]
  assert same[0] == same[1]  # one policy, one reward to compare by
  # ToolRL pays for whatever is said where no call is wanted: its own coin is worth less.
  own = runs["toolrl"]["own_reward"]
  assert own["own"] != pytest.approx(runs["toolrl"]["splits"]["own"]["final_mean"])
  table = (tmp_path / "sweep.md").read_text()
  assert "| own | binary |" in table and "| own | toolrl |" in table
  assert (tmp_path / "sweep.png").stat().st_size > 1000 and "sweep folder" in done.stdout

  again = run("sweep_reward", *flags)
  assert again.returncode == 0, again.stderr
  assert again.stdout.count(": finished before") == 2
  assert (tmp_path / "sweep.md").read_text() == table
  (tmp_path / "seed=0,reward=toolrl" / "report.html").unlink()
  assert not is_finished(tmp_path / "seed=0,reward=toolrl")


def test_a_judge_is_swept_like_any_reward(common, tmp_path):
  pytest.importorskip("openai")
  # Nobody answers there: after its retries the rule's score stands.
  judge = ["--judge_model=m", "--judge_url=http://127.0.0.1:1/v1"]
  rewards = ["--reward=judge", "--reward=0.5*tiered,0.5*judge"]
  flags = [f"--sweep_dir={tmp_path / 'x'}", *rewards, "--graded_floor=0.1,0.2", "--reward=graded"]
  done = run("sweep_reward", *flags, "--dry_run", "--", *judge)
  assert done.returncode == 0, done.stderr
  # What only `graded` reads makes no more runs of the judge, whose rule is `tiered`.
  assert done.stdout.count("reward=judge") == 1 and done.stdout.count("reward=graded") == 2
  done = run("sweep_reward", *flags, "--dry_run")
  assert done.returncode == 1 and "needs a judge model" in done.stderr
  assert "--judge_model" in done.stderr and len(done.stderr.strip().splitlines()) == 1
  done = run(
    "sweep_reward", f"--sweep_dir={tmp_path / 'y'}", "--reward=judge", *common, *judge,
    "--steps=1", "--prompts_per_step=2", "--group_size=2",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "| own | judge |" in (tmp_path / "y" / "sweep.md").read_text()


def test_a_sweep_that_was_stopped_goes_on_from_the_checkpoint(common, tmp_path):
  flags = [
    str(EXPERIMENTS / "sweep_batch.py"), f"--sweep_dir={tmp_path}", "--prompts_per_step=2",
    "--group_size=2", "--micro_batch_prompts=2", *common, "--steps=60",
  ]  # fmt: skip
  process = subprocess.Popen(
    [sys.executable, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    start_new_session=True, preexec_fn=signal_defaults,
  )  # fmt: skip
  try:
    deadline = time.monotonic() + 120
    while not (found := list(tmp_path.glob("*/metrics.jsonl"))) or not found[0].stat().st_size:
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
  finally:
    process.kill()
  assert process.returncode == EXIT_STOPPED, said
  assert said.splitlines()[-1].startswith("sweep_batch: stopped by SIGINT")
  done = len(found[0].read_text().splitlines())
  assert 0 < done < 60
  assert [path.name for path in (found[0].parent / "checkpoints").iterdir() if path.is_dir()] == [
    str(done)
  ]
  again = run("sweep_batch", *flags[1:])
  assert again.returncode == 0, again.stderr
  assert f"at step {done}" in again.stderr  # it went on there
  assert len(found[0].read_text().splitlines()) == 60 and (tmp_path / "sweep.md").exists()


def test_batch_settings_get_the_same_budget_of_completions(common, tmp_path):
  done = run(
    "sweep_batch", f"--sweep_dir={tmp_path}", "--prompts_per_step=2,4", "--group_size=2",
    "--micro_batch_prompts=2", "--completions=8", *common,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  runs = json.loads((tmp_path / "sweep.json").read_text())["runs"]
  assert [(r["settings"]["prompts_per_step"], r["settings"]["steps"]) for r in runs] == [
    (2, 2),
    (4, 1),
  ]
  for entry in runs:
    folder = tmp_path / entry["name"]
    config = json.loads((folder / "config.json").read_text())
    steps = len((folder / "metrics.jsonl").read_text().splitlines())
    assert steps == entry["settings"]["steps"] == config["steps"]
    assert steps * config["prompts_per_step"] * config["grpo"]["sampling"]["group_size"] == 8
    assert entry["peak_memory_gib"] > 0.1 and entry["minutes"] > 0


def test_dry_run_lists_the_runs_and_touches_no_device(tmp_path):
  flags = [f"--sweep_dir={tmp_path / 'x'}", "--seed=0,1", "--dry_run"]
  for script, count in (("sweep_reward", 8), ("sweep_batch", 8)):
    done = run(script, *flags, JAX_PLATFORMS="no_such_platform")
    assert done.returncode == 0, done.stderr
    assert f"{count} runs" in done.stdout and done.stdout.count("  seed=1,") == count // 2
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  ("script", "flags", "sentence"),
  [
    ("sweep_reward", ["--partial_execute=0.9", "--exact=0.8"], "partial_execute must not exceed"),
    ("sweep_reward", ["--reward=binary", "--graded_floor=0.1"], "read by none of the rewards"),
    ("sweep_batch", ["--micro_batch_prompts=4"], "does not divide the 6 prompts"),
    ("sweep_batch", ["--completions=96", "--", "--steps=3"], "--steps=3 is set by the sweep"),
  ],
)
def test_contradictory_runs_end_in_one_sentence_before_any_work(tmp_path, script, flags, sentence):
  done = run(script, f"--sweep_dir={tmp_path / 'x'}", *flags)
  assert done.returncode == 1
  assert done.stderr.startswith(f"{script}: ") and sentence in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert not (tmp_path / "x").exists()
