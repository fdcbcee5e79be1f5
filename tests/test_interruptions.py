"""Killed and stopped runs, for real: they end as one that never stopped."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import STEPS, assert_same_run, command, steps_of

from grpo_jax import train as training
from grpo_jax.runs.checkpoints import SEAL, Checkpoints
from grpo_jax.runs.preemption import EXIT_STOPPED
from grpo_jax.runs.trackers import read_metrics
from grpo_jax.train import train

LONG = 40  # steps of the runs that are killed


def start_and_signal(arguments: list[str], folder: Path, steps: int, number: int) -> int:
  """Runs a command until the run has that many steps more, sends a signal; the exit status."""
  already = steps_of(folder)
  process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 120
    # A resumed run first drops the lines behind its checkpoint.
    while steps_of(folder) in (already, already - 1, already - 2):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.02)
    while steps_of(folder) < already + steps and process.poll() is None:
      time.sleep(0.005)
    process.send_signal(number)
    return process.wait(timeout=60)
  finally:
    process.kill()


def test_killed_runs_end_as_one_that_never_stopped(settings, tmp_path):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  train(dataclasses.replace(settings, run_dir=str(whole), steps=LONG))
  arguments = command(settings, broken, LONG)
  assert start_and_signal(arguments, broken, 4, signal.SIGKILL) == -signal.SIGKILL
  assert 0 < steps_of(broken) < LONG
  before = steps_of(broken)
  assert start_and_signal(arguments, broken, 5, signal.SIGTERM) == EXIT_STOPPED
  # What was done before the signal is in a checkpoint of exactly that step.
  with Checkpoints(broken, read_only=True) as checkpoints:
    assert before < checkpoints.newest_good() == steps_of(broken) < LONG
  done = subprocess.run(arguments, check=True, capture_output=True, text=True)
  assert "Reward before and after" in done.stdout
  assert_same_run(whole, broken)


def test_the_second_signal_leaves_at_once(tmp_path):
  program = (
    "import time, sys\n"
    "from grpo_jax.runs.preemption import StopSignals\n"
    "with StopSignals():\n"
    "  print('ready', flush=True)\n"
    "  time.sleep(60)\n"
    "  time.sleep(60)\n"
  )
  process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
  assert process.stdout is not None and process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGINT)
  time.sleep(0.3)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  assert process.wait(timeout=10) == 128 + signal.SIGINT


def test_a_signal_between_phases_loses_nothing(settings, whole, tmp_path, monkeypatch):
  config = dataclasses.replace(settings, run_dir=str(tmp_path / "run"))
  score, calls = training.score_rollout, iter(range(STEPS))

  def interrupted(*rest):
    if next(calls) == 3:  # in the middle of step 3; the newest periodic checkpoint is that of 2
      os.kill(os.getpid(), signal.SIGTERM)
    return score(*rest)

  with monkeypatch.context() as patch:
    patch.setattr(training, "score_rollout", interrupted)
    with pytest.raises(training.Stopped, match="SIGTERM"):
      train(config)
  assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3
  with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
    assert checkpoints.newest_good() == 3
  assert_same_run(whole, train(config))


def test_a_signal_in_an_evaluation_between_steps_loses_nothing(
  settings, whole, tmp_path, monkeypatch
):
  folder = tmp_path / "run"
  config = dataclasses.replace(settings, run_dir=str(folder))
  evaluate, take_step, calls = training.evaluate, training.take_step, itertools.count()
  evaluations, steps = [], []

  def interrupted(*arguments, **named):
    call = next(calls)
    if call in (1, 2):  # after the start's: that of step 2, and the same when the run goes on
      os.kill(os.getpid(), signal.SIGTERM)
    found = evaluate(*arguments, **named)
    evaluations.append(call)
    return found

  def counted(setup, state, number, *rest):
    steps.append(number)
    return take_step(setup, state, number, *rest)

  monkeypatch.setattr(training, "evaluate", interrupted)
  monkeypatch.setattr(training, "take_step", counted)
  for _ in range(2):
    with pytest.raises(training.Stopped, match="SIGTERM"):
      train(config)
    assert evaluations == [0] and steps == [0, 1, 2]  # given up, and no step is done again
    (*_, last) = read_metrics(folder / "metrics.jsonl")
    assert last["step"] == 2 and "eval/held_out/reward" not in last
    with Checkpoints(folder, read_only=True) as checkpoints:
      assert checkpoints.newest_good() == 3
  assert_same_run(whole, train(config))
  assert evaluations == [0, 3, 4] and steps == [0, 1, 2, 3]


def test_a_run_that_died_writing_its_first_checkpoint_starts_over(settings, whole, tmp_path):
  config = dataclasses.replace(settings, run_dir=str(tmp_path / "run"))
  train(dataclasses.replace(config, steps=2))
  (tmp_path / "run" / "checkpoints" / "2" / SEAL).unlink()  # written last
  assert_same_run(whole, train(config))


def test_metrics_are_on_the_disk_before_a_checkpoint_of_them(settings, tmp_path, monkeypatch):
  path = tmp_path / "run" / "metrics.jsonl"
  synced, saved = [0], []
  fsync, save = os.fsync, Checkpoints.save

  def watched_fsync(file):
    fsync(file)
    if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
      synced.append(os.fstat(file).st_size)

  def watched_save(checkpoints, state, *rest):
    saved.append((int(state.step), steps_of(path.parent), synced[-1] == path.stat().st_size))
    save(checkpoints, state, *rest)

  monkeypatch.setattr(os, "fsync", watched_fsync)
  monkeypatch.setattr(Checkpoints, "save", watched_save)
  train(dataclasses.replace(settings, run_dir=str(path.parent)))
  score, calls = training.score_rollout, iter([False, True])

  def interrupted(*rest):
    if next(calls):
      os.kill(os.getpid(), signal.SIGTERM)
    return score(*rest)

  monkeypatch.setattr(training, "score_rollout", interrupted)
  with pytest.raises(training.Stopped):
    train(dataclasses.replace(settings, run_dir=str(path.parent), steps=9))
  assert saved == [(2, 2, True), (4, 4, True), (5, 5, True)]
