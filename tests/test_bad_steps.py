"""Numbers that are none, and rewards that fail: the run goes on, or ends in one sentence."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from small_run import STEPS, steps_of

from grpo_jax import train as training
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.runs.trackers import read_metrics
from grpo_jax.train import TrainingFailed, train


def break_numbers(monkeypatch, steps):
  """Makes the rewards of some steps infinite: their advantages, loss and gradient are NaN."""
  score, calls = training.score_rollout, iter(range(STEPS))

  def broken(*rest):
    scored = score(*rest)
    rewards = scored.rewards + np.float32(np.inf if next(calls) in steps else 0)
    return dataclasses.replace(scored, rewards=rewards)

  monkeypatch.setattr(training, "score_rollout", broken)


def test_a_bad_batch_changes_nothing_and_is_kept(settings, tmp_path, monkeypatch, caplog):
  break_numbers(monkeypatch, {1})
  config = dataclasses.replace(settings, run_dir=str(tmp_path / "run"), checkpoint_every=1,
                               keep_checkpoints=9, warmup_steps=8)  # fmt: skip
  with caplog.at_level("WARNING"):
    folder = train(config)
  lines = read_metrics(folder / "metrics.jsonl")
  assert [line["skipped_updates"] for line in lines] == [0, 2, 0, 0]  # two inner updates a step
  assert [line["alarms/skipped_update"] for line in lines] == [0, 1, 0, 0]
  assert all(np.isfinite(line["loss"]) for line in (lines[0], *lines[2:]))
  # Of 0.01 / 8 an optimizer step: the skipped ones do not count, so step 2 is at step 1's rate.
  rates = [line["learning_rate"] for line in lines]
  assert rates == pytest.approx([0.01 * count / 8 for count in (1, 3, 3, 5)])
  like = training.set_up(training.read_data(config))[1]
  with Checkpoints(folder, read_only=True) as checkpoints:
    one, two, three = (checkpoints.restore(step, like)[0] for step in (1, 2, 3))
  flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
  assert np.array_equal(flat(one.params), flat(two.params)) and int(two.step) == 2
  assert np.array_equal(flat(one.opt_state), flat(two.opt_state))
  assert not np.array_equal(flat(two.params), flat(three.params))
  kept = np.load(folder / "bad_steps" / "step_000001.npz")
  assert kept["tokens"].shape[:2] == kept["rewards"].shape == (2, 3)
  assert "skipped_update" in (folder / "report.html").read_text()
  assert "no finite update" in caplog.text


def test_too_many_bad_steps_end_the_run(settings, tmp_path, monkeypatch):
  config = dataclasses.replace(settings, run_dir=str(tmp_path / "run"), max_bad_steps=2)
  with monkeypatch.context() as patch:
    break_numbers(patch, {1, 2, 3})
    with pytest.raises(TrainingFailed, match=r"no finite update in 2 steps up to 2: .*bad_steps"):
      train(config)
  assert steps_of(tmp_path / "run") == 3
  assert training.train(config) and steps_of(tmp_path / "run") == STEPS  # mended, it goes on


def test_a_reward_with_half_a_surrogate_pair_costs_its_completions_and_not_the_run(
  settings, tmp_path
):
  path = tmp_path / "half.py"
  path.write_text(
    "from grpo_jax.rewards import RewardBreakdown\n"
    "def half(completion, task):\n"
    "  if len(completion) % 2: raise ValueError('half \\ud800 of it')\n"
    "  return RewardBreakdown(0.5, 'half \\udfff', {'\\udfff': 1.0})\n"
  )
  folder = train(
    dataclasses.replace(settings, run_dir=str(tmp_path / "run"), reward=f"{path}:half", steps=2)
  )
  said = (folder / "first_reward_failure.txt").read_text(encoding="utf-8")
  assert "ValueError: half ? of it" in said
  rows = (folder / "rollouts" / "step_000000.jsonl").read_text(encoding="utf-8").splitlines()
  errors = {error for row in rows for error in json.loads(row)["errors"]}
  assert errors == {"reward_error", "half ?"}
