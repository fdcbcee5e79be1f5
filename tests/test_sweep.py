from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import signal_defaults

from grpo_jax.sweeps.grid import Cell, grid
from grpo_jax.sweeps.sweep import (
  RECORD,
  draw_results,
  over_seeds,
  rescored,
  results_table,
  run_sweep,
)
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.synthetic.splits import generate

CELLS = grid({"reward": ["binary", "tiered"], "seed": [0, 1]})


def run_of(cell, after, minutes=2.0, peak=1.5):
  """What `cell_results` gives for three tasks that scored 0.5 each before."""
  rows = lambda rewards: [
    {"index": i, "id": f"t{i}", "request": "", "wanted": wanted, "reward": reward}
    for i, (wanted, reward) in enumerate(
      zip(("execute", "execute", "refuse"), rewards, strict=True)
    )
  ]
  return {
    "name": cell.name,
    "settings": dict(cell.settings),
    "splits": {"unseen": {"final_mean": sum(after) / 3}},
    "minutes": minutes,
    "peak_memory_gib": peak,
    "rows": {"unseen": (rows([0.5, 0.5, 0.5]), rows(after))},
  }


def groups():
  return over_seeds(
    [
      run_of(CELLS[0], [1.0, 0.5, 0.0]),
      run_of(CELLS[1], [1.0, 1.0, 1.0], minutes=4.0, peak=2.0),
      run_of(CELLS[2], [0.5, 0.5, 0.5]),
    ]
  )


def test_seeds_of_the_same_settings_are_averaged_task_by_task():
  first, second = groups()
  assert first["settings"] == {"reward": "binary"} and first["seeds"] == [0, 1]
  found = first["splits"]["unseen"]
  assert found["final_mean"] == pytest.approx((1.0 + 0.75 + 0.5) / 3)
  assert found["each_seed"] == [0.5, 1.0]
  assert found["relative_gain"] == pytest.approx(0.5)
  assert found["by_behavior"]["refuse"]["final_mean"] == pytest.approx(0.5)
  assert first["minutes"] == 3.0 and first["peak_memory_gib"] == 2.0
  assert second["seeds"] == [0] and second["splits"]["unseen"]["relative_gain"] == 0.0


def test_table_has_a_row_for_each_split_and_setting():
  header, rows = results_table(groups())
  first = dict(zip(header, rows[0], strict=True))
  assert len(rows) == 2 and first["split"] == "unseen" and first["reward"] == "binary"
  assert (first["before"], first["after"], first["execute"]) == ("0.500", "0.750", "0.875")
  assert first["clarify"] == "-"  # no such task
  assert first["after, by seed"] == "0: 0.500 1: 1.000"
  assert first["relative gain [95%]"].startswith("+50% [")


def test_plot_shows_every_seed_and_the_base():
  axes = draw_results(groups()).axes
  assert len(axes) == 1
  drawn = [tuple(line.get_xdata()) for line in axes[0].lines]
  assert (0.5, 1.0) in drawn and (0.75,) in drawn and drawn[0] == (0.5, 0.5)


def test_completions_are_scored_anew_whatever_they_were_trained_with(tmp_path):
  tasks = [ToolTask.from_row(row) for row in generate(0, "seen", 20)]
  path = tmp_path / "final_seen.jsonl"
  lines = [
    {"index": i, "request": t.request, "completion": t.answer, "reward": -7.0}
    for i, t in enumerate(tasks)
  ]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
  assert [row["reward"] for row in rescored(path, tasks, "strict")] == [1.0] * 20
  with pytest.raises(ValueError, match="not an evaluation of the tasks"):
    rescored(path, tasks[1:], "strict")


def script(tmp_path: Path, body: str) -> list[str]:
  """A training script that ends in one of the ways in which the real one can."""
  path = tmp_path / "train.py"
  path.write_text(
    "import pathlib, sys\n"
    "flags = dict(a[2:].split('=', 1) for a in sys.argv[1:])\n"
    "folder = pathlib.Path(flags['run_dir'])\n"
    f"{body}\n"
  )
  return [sys.executable, str(path)]


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path, capfd):
  # The first one fails after its start; those of seed 1 cannot start at all.
  body = (
    "if flags['seed'] == '1': sys.exit(4)\n(folder / 'config.json').write_text('{}'); sys.exit(3)"
  )
  failed = run_sweep(CELLS, tmp_path / "sweep", script(tmp_path, body), own_flags=())
  assert failed == [cell.name for cell in CELLS]
  said = capfd.readouterr().err
  assert said.count("failed with exit status 3") == said.count("failed with exit status 4") == 2


def test_settings_that_nothing_can_start_with_stop_the_sweep(tmp_path):
  command = script(tmp_path, "sys.exit(f'bad flag in {folder.name}')")
  with pytest.raises(ValueError, match="reward=binary,seed=0 could not start"):
    run_sweep(CELLS, tmp_path / "sweep", command, own_flags=())
  assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
  ("passed_on", "message"),
  [
    (["--seed=3"], "--seed=3 is set by the sweep itself"),
    (["--run_dir=x"], "--run_dir=x is set by the sweep itself"),
    (["--nostrict"], "--nostrict is set by the sweep itself"),
    (["steps=3"], "steps=3 cannot be passed on"),
    (["--flagfile=f"], "--flagfile=f could set what the sweep sets itself; give its flags"),
    (["--flagfile", "f"], "--flagfile could set what the sweep sets itself"),
    (["-flagfile=f"], "-flagfile=f cannot be passed on"),
    (["-seed=3"], "-seed=3 cannot be passed on"),
    (["--steps", "3"], "3 cannot be passed on"),
    (["---seed=3"], "---seed=3 is set by the sweep itself"),
    (["--seed"], "--seed is set by the sweep itself"),
  ],
)
def test_arguments_that_contradict_the_sweep_end_it_before_any_work(tmp_path, passed_on, message):
  command = script(tmp_path, "sys.exit('was run')")
  with pytest.raises(ValueError, match=message):
    run_sweep(CELLS, tmp_path / "sweep", command, passed_on, own_flags=("seed", "strict"))
  assert not (tmp_path / "sweep").exists()


def test_cells_that_would_share_a_folder_are_refused(tmp_path):
  cells = [Cell({"reward": "a/b.py:f"}), Cell({"reward": "a b.py:f"})]
  with pytest.raises(ValueError, match="two cells would share the folder"):
    run_sweep(cells, tmp_path, ["false"], own_flags=())


def test_a_sweep_folder_of_other_settings_is_refused(tmp_path):
  command = script(tmp_path, "(folder / 'config.json').write_text('{}'); sys.exit(1)")
  run_sweep(CELLS[:1], tmp_path, command, ["--steps=2"], own_flags=())
  assert json.loads((tmp_path / CELLS[0].name / RECORD).read_text())["arguments"][-1] == "--steps=2"
  with pytest.raises(ValueError, match="was run with --steps=2 and now with --steps=3"):
    run_sweep(CELLS[:1], tmp_path, command, ["--steps=3"], own_flags=())


def test_no_secret_goes_into_the_record_of_a_cell(tmp_path):
  command = script(tmp_path, "(folder / 'config.json').write_text('{}'); sys.exit(1)")
  passed_on = ["--judge_url=http://bob:s3cret@host/v1"]
  for _ in range(2):  # the record is still that of the same arguments
    run_sweep(CELLS[:1], tmp_path / "sweep", command, passed_on, own_flags=())
  text = (tmp_path / "sweep" / CELLS[0].name / RECORD).read_text()
  assert "--judge_url=http://***@host/v1" in text and "s3cret" not in text
  with pytest.raises(ValueError, match="was run with") as caught:
    run_sweep(CELLS[:1], tmp_path / "sweep", command, ["--judge_url=x"], own_flags=())
  assert "s3cret" not in str(caught.value)


# Stands for a training run: it takes its time to write a checkpoint when it is asked to stop.
SLOW_TO_STOP = """
import signal, time
(folder / 'config.json').write_text('{}')
received = []
def stop(number, frame):
  received.append(number)
  (folder / 'received').write_text(' '.join(str(n) for n in received))
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, stop)
(folder / 'ready').touch()
end = time.monotonic() + 60
while not received and time.monotonic() < end: time.sleep(0.01)
time.sleep(1.0)
(folder / 'checkpoint').touch()
sys.exit(75)
"""
SWEEP = """
import json, sys
from pathlib import Path
from grpo_jax.sweeps.grid import Cell
from grpo_jax.runs.preemption import Stopped
from grpo_jax.sweeps.sweep import run_sweep
cells = [Cell({'seed': 0}), Cell({'seed': 1})]
try:
  print(run_sweep(cells, Path(sys.argv[1]), json.loads(sys.argv[2]), own_flags=()))
except Stopped as stopped:
  sys.exit(f'{stopped}')
"""


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "hang-up", "the cell alone"])
def test_a_stopped_sweep_lets_its_cell_write_a_checkpoint(tmp_path, how):
  command = json.dumps(script(tmp_path, SLOW_TO_STOP))
  process = subprocess.Popen(
    [sys.executable, "-c", SWEEP, str(tmp_path / "sweep"), command],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    preexec_fn=signal_defaults,
  )  # fmt: skip
  cell = tmp_path / "sweep" / "seed=0"
  try:
    deadline = time.monotonic() + 60
    while not (cell / "ready").exists():
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.01)
    if how == "Ctrl-C":  # a terminal sends it to all of its foreground processes
      os.killpg(process.pid, signal.SIGINT)
    elif how == "SIGTERM":
      process.terminate()
    elif how == "hang-up":
      process.send_signal(signal.SIGHUP)
    else:
      children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
      for child in children:
        os.kill(int(child), signal.SIGTERM)
    _, said = process.communicate(timeout=60)
  finally:
    process.kill()
  assert (cell / "checkpoint").exists(), said
  sent = signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM
  assert (cell / "received").read_text() == str(int(sent))  # a second one would leave at once
  assert process.returncode == 1 and said.strip().endswith("in seed=0"), said
  assert "failed" not in said and not (tmp_path / "sweep" / "seed=1").exists()
  assert (cell / RECORD).exists()  # the same command goes on with it


def test_the_handlers_of_signals_are_put_back(tmp_path):
  before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
  run_sweep(CELLS[:1], tmp_path, script(tmp_path, "(folder / 'config.json').touch(); sys.exit(1)"),
            own_flags=())  # fmt: skip
  assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
