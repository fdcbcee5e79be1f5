"""What a person sees of a run, and what goes into its log."""

from __future__ import annotations

import io
import logging
import subprocess

from small_run import command

from grpo_jax.runs import console


def test_a_run_shows_what_a_person_wants_and_logs_the_rest(settings, tmp_path):
  run_dir = tmp_path / "run"
  done = subprocess.run(command(settings, run_dir, 3), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  shown = done.stdout + done.stderr
  assert len(shown.splitlines()) <= 60
  for wanted in (
    "prompt tokens", "3 steps of 2 prompts x 3 candidates", "evaluating 3 held-out tasks",
    "step 3/3  reward ", "run folder: ",
  ):  # fmt: skip
    assert wanted in shown
  for unwanted in ("orbax", "heckpoint_manager", "absl", "xla"):
    assert unwanted not in shown
  log = (run_dir / "log.txt").read_text()
  assert "orbax" in log and "evaluating 3 held-out tasks" in log


def test_where_there_is_no_terminal_a_bar_is_a_line_now_and_then(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
  out = io.StringIO()
  bar = console.Progress(2, 6, stream=out)
  for step in bar:
    clock[0] += 3.0
    bar.show(step + 1, reward=f"0.{step}")
  assert out.getvalue().splitlines() == [
    "step 4/6  reward 0.3  3.00 s/step  00:00:06 left",
    "step 6/6  reward 0.5  3.00 s/step  00:00:00 left",
  ]


def test_a_bar_says_what_it_counts_and_may_be_shown_before_anything_is_done(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
  out = io.StringIO()
  bar = console.Progress(0, 30, stream=out, name="unseen, base", unit="task")
  for done in (0, 8, 30):
    bar.show(done)
    clock[0] += 10.0
  assert out.getvalue().splitlines() == [
    "task 8/30  1.25 s/task  00:00:27 left",
    "task 30/30  0.67 s/task  00:00:00 left",
  ]


def test_the_log_waits_for_the_run_to_begin(tmp_path):
  logger = logging.getLogger("grpo_jax.test_console")
  with console.quiet(tmp_path / "run"):
    logger.info("before")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    logging.getLogger("somebody.else").info("after \ud800")
  lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
  assert [line.split(" ")[-1] for line in lines] == ["before", "?"]
