"""Faults, for real: killed processes, damaged files, full disks, numbers that are none."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from small_run import STEPS, assert_same_run, command, small_run

from grpo_jax import train as training
from grpo_jax.files import atomic
from grpo_jax.models.tensor_file import write_tensors
from grpo_jax.replay import replay
from grpo_jax.runs import folder as run_folder
from grpo_jax.runs.checkpoints import SEAL, Checkpoints
from grpo_jax.runs.preemption import EXIT_STOPPED
from grpo_jax.runs.trackers import read_metrics
from grpo_jax.tasks.jsonl import write_jsonl
from grpo_jax.train import TrainingFailed, train

LONG = 40  # steps of the runs that are killed


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
  return small_run(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
  return train(dataclasses.replace(settings, run_dir=str(tmp_path_factory.mktemp("whole") / "run")))


@pytest.fixture
def copied(whole, settings, tmp_path):
  """A copy of the finished run, as a folder to damage, and the settings that go on with it."""
  shutil.copytree(whole, tmp_path / "run")
  return tmp_path / "run", dataclasses.replace(settings, run_dir=str(tmp_path / "run"))


def steps_of(folder: Path) -> int:
  return len(run_folder.whole_lines(folder / "metrics.jsonl"))


def start_and_signal(arguments: list[str], folder: Path, steps: int, number: int) -> int:
  """Runs a command until the run has that many steps more, sends a signal; the exit status."""
  already = steps_of(folder)
  process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 120
    # A resumed run first drops the lines behind its checkpoint.
    while steps_of(folder) in (already, already - 1, already - 2):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.001)
    while steps_of(folder) < already + steps and process.poll() is None:
      time.sleep(0.001)
    process.send_signal(number)
    return process.wait(timeout=60)
  finally:
    process.kill()


def test_killed_runs_end_as_one_that_never_stopped(settings, tmp_path):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  subprocess.run(command(settings, whole, LONG), check=True, capture_output=True)
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


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed"])
def test_damage_to_any_file_of_a_checkpoint_is_seen(whole, tmp_path, damage):
  files = [p.relative_to(whole) for p in (whole / "checkpoints" / "4").rglob("*") if p.is_file()]
  assert len(files) > 5
  for file in files:
    run = tmp_path / "run"
    shutil.copytree(whole / "checkpoints", run / "checkpoints")
    content = bytearray((run / file).read_bytes())
    if damage == "removed":
      (run / file).unlink()
    elif damage == "truncated":
      (run / file).write_bytes(content[: len(content) // 2] if content else b"x")
    else:
      content[len(content) // 2 : len(content) // 2 + 1] = bytes(
        [content[len(content) // 2] ^ 1] if content else b"x"
      )
      (run / file).write_bytes(content)
    with Checkpoints(run, read_only=True) as checkpoints:
      named = file if file.name != SEAL or damage == "removed" else Path(SEAL)
      assert str(named) in checkpoints.problem(4) or file.name == SEAL
      assert checkpoints.problem(4) and checkpoints.newest_good() == 2, file
    shutil.rmtree(run)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(copied, whole, caplog):
  folder, config = copied
  largest = max((folder / "checkpoints" / "4" / "state").rglob("*"), key=lambda p: p.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[100] ^= 16
  largest.write_bytes(content)
  (folder / "eval_final.json").unlink()
  with caplog.at_level("WARNING"):
    assert_same_run(whole, train(config))
  assert f"skipping the checkpoint of step 4: {largest} is damaged" in caplog.text


def test_torn_metrics_are_repaired_from_a_checkpoint(copied, whole):
  folder, config = copied
  lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
  # The third line is torn, so the checkpoint of step 4 has no complete record before it.
  (folder / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:50] + b"\0\0\n" + lines[3])
  assert_same_run(whole, train(config))


def test_another_process_on_the_folder_is_refused(settings, tmp_path):
  config = dataclasses.replace(settings, run_dir=str(tmp_path / "run"))
  program = (
    "import sys, time\nfrom pathlib import Path\nfrom grpo_jax.runs.folder import claimed\n"
    "with claimed(Path(sys.argv[1])):\n  print('claimed', flush=True)\n  time.sleep(60)\n"
  )
  holder = subprocess.Popen(
    [sys.executable, "-c", program, config.run_dir], stdout=subprocess.PIPE, text=True
  )
  try:
    assert holder.stdout is not None and holder.stdout.readline() == "claimed\n"
    with pytest.raises(ValueError, match=rf"in use by another process \(pid {holder.pid}\)"):
      train(config)
    assert not (tmp_path / "run" / "config.json").exists()
  finally:
    holder.kill()
    holder.wait()
  with run_folder.claimed(tmp_path / "run"):  # the system freed it
    pass


@pytest.mark.parametrize("changed", ["data", "model", "reward", "flag"])
def test_what_alters_the_future_is_refused_unless_allowed(copied, tmp_path, changed):
  folder, config = copied
  shutil.copytree(Path(config.model).parent, tmp_path / "own")
  move = lambda path: str(tmp_path / "own" / Path(path).relative_to(Path(config.model).parent))
  own = dataclasses.replace(
    config, model=move(config.model), data=move(config.data), reward=move(config.reward),
    eval_data=tuple((n, move(p)) for n, p in config.eval_data),
  )  # fmt: skip
  record = json.loads((folder / "config.json").read_text())
  record |= {k: v for k, v in json.loads(json.dumps(dataclasses.asdict(own))).items()
             if k in ("model", "data", "reward", "eval_data")}  # fmt: skip
  record["reward_sha256"] = {own.reward.split(":")[0]: next(iter(record["reward_sha256"].values()))}
  (folder / "config.json").write_text(json.dumps(record))
  if changed == "data":
    lines = Path(own.data).read_text().splitlines(keepends=True)
    Path(own.data).write_text("".join(lines[::-1]))
    what = r"data_sha256 \("
  elif changed == "model":
    weights = Path(own.model) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    what = r"model_sha256 \("
  elif changed == "reward":
    path = Path(own.reward.split(":")[0])
    path.write_text(path.read_text() + "# a comment\n")
    what = r"reward_sha256 \("
  else:
    own = dataclasses.replace(own, learning_rate=0.02)
    what = r"learning_rate \(0.01 then, 0.02 now\)"
  with pytest.raises(ValueError, match=what):
    train(own)
  train(dataclasses.replace(own, allow_changes=True))  # nothing is left to do but the report


def base_of(folder: Path) -> tuple[dict, list[dict]]:
  """The summary and the rows of the evaluation before training."""
  rows = (folder / "eval" / "base_held_out.jsonl").read_text().splitlines()
  summary = json.loads((folder / "eval_base.json").read_text())["held_out"]
  return summary, [json.loads(row) for row in rows]


@pytest.mark.parametrize("changed", ["reward", "length", "nothing", "unknown"])
def test_the_gain_is_between_evaluations_of_the_same_settings(copied, tmp_path, changed):
  folder, config = copied
  summary, before = base_of(folder)
  if changed == "reward":
    (tmp_path / "other.py").write_text(
      "def high(completion, task):\n  return 1 - sum(map(ord, completion)) % 7 / 6\n"
    )
    config = dataclasses.replace(config, reward=f"{tmp_path / 'other.py'}:high")
  elif changed == "length":
    shorter = dataclasses.replace(config.grpo.sampling, max_tokens=3)
    config = dataclasses.replace(config, grpo=dataclasses.replace(config.grpo, sampling=shorter))
  else:  # a base of another policy: kept where it says that nothing changed, else made again
    before[0]["completion"] = "not the start's"
    text = "".join(json.dumps(row) + "\n" for row in before)
    (folder / "eval" / "base_held_out.jsonl").write_text(text)
  if changed == "unknown":
    del summary["settings"]
    (folder / "eval_base.json").write_text(json.dumps({"held_out": summary}))
  train(dataclasses.replace(config, allow_changes=True))
  found, after = base_of(folder)
  if changed == "reward":  # the start's completions, although the run goes on from its end
    assert [row["completion"] for row in after] == [row["completion"] for row in before]
    for old, new in zip(before, after, strict=True):
      assert new["reward"] == pytest.approx(1 - old["reward"])
  elif changed == "length":
    assert max(row["tokens"] for row in before) > 3 >= max(row["tokens"] for row in after)
    assert all(b["tokens"] >= a["tokens"] for a, b in zip(after, before, strict=True))
  else:
    assert (after[0]["completion"] == "not the start's") == (changed == "nothing")
  final = json.loads((folder / "eval_final.json").read_text())["held_out"]
  assert found["settings"] == final["settings"]


def test_a_lost_evaluation_of_the_start_is_made_of_the_start(copied, whole):
  folder, config = copied
  (folder / "eval_base.json").unlink()
  assert_same_run(whole, train(config))


def test_replay_finds_a_step_as_it_was_recorded(whole, tmp_path):
  before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
  found = replay(whole, 3)
  assert (found.step, found.start, found.notes) == (3, 2, ())
  assert set(found.equal) == {
    "batch", "completions", "rewards", "advantages", "update", "parameters"
  }  # fmt: skip
  assert all(found.equal.values())
  assert replay(whole, 0).start == 0
  assert before == {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
  shutil.copytree(whole, tmp_path / "run")
  file = tmp_path / "run" / "rollouts" / "step_000003.jsonl"
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  rows[1]["completions"][0] += "!"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  last = json.loads(lines[3])
  lines[3] = json.dumps(last | {"loss": last["loss"] + 1e-6})
  (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  found = replay(tmp_path / "run", 3)
  assert not found.equal["completions"] and not found.equal["update"]
  assert found.equal["batch"] and found.equal["rewards"] and found.equal["parameters"]
  assert "completions differ at 1 of 2 prompts" in found.notes
  with pytest.raises(ValueError, match="no record of step 4; it has 4 steps"):
    replay(whole, 4)
  script = Path(training.__file__).parents[1] / "experiments" / "replay.py"
  said = subprocess.run(
    [sys.executable, str(script), f"--run={tmp_path / 'run'}", "--step=3"],
    capture_output=True, text=True,
  )  # fmt: skip
  assert said.returncode == 1 and "completions  DIFFERENT" in said.stdout, said.stderr[-2000:]


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


def full_disk(tmp_path: Path, size: int) -> Path:
  """A small file system; needs root, so without it a limit on file sizes stands in."""
  folder = tmp_path / "small"
  folder.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
  )
  if mounted.returncode:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4, resource.RLIM_INFINITY))
  return folder


def test_a_full_disk_ends_with_one_sentence_and_loses_nothing(settings, whole, tmp_path):
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  small = full_disk(tmp_path, 5 * 2**20)
  try:
    config = dataclasses.replace(settings, run_dir=str(small / "run"), keep_checkpoints=5)
    train(dataclasses.replace(config, steps=2))
    filler = small / "filler"
    with filler.open("wb", buffering=0) as file:
      try:
        while True:
          file.write(b"\0" * 512)
      except OSError:
        pass
    with pytest.raises(TrainingFailed, match=r"no room left on the disk .*: free some and run"):
      train(config)
    filler.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    with Checkpoints(small / "run", read_only=True) as checkpoints:
      assert checkpoints.newest_good() == 2
    assert_same_run(whole, train(config))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    subprocess.run(["umount", str(small)], capture_output=True)


def test_a_read_only_folder_is_one_sentence(settings, tmp_path):
  (tmp_path / "file").write_text("in the way")
  arguments = command(settings, tmp_path / "file" / "run", 2)
  done = subprocess.run(arguments, capture_output=True, text=True)
  last = done.stderr.strip().splitlines()[-1]
  assert done.returncode == 1 and last.startswith("train_grpo: ") and "Not a directory" in last


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


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL"])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, code):
  def refused(*_):
    raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

  monkeypatch.setattr(fcntl, "flock", refused)  # Lustre and some NFS mounts; none can be made here
  with caplog.at_level("WARNING"), run_folder.claimed(tmp_path / "run"):
    assert (tmp_path / "run" / ".lock").read_text() == f"{os.getpid()}\n"
  assert "has no file locks" in caplog.text and "\n" not in caplog.messages[0]


def test_what_else_goes_wrong_with_a_lock_is_an_error(tmp_path, monkeypatch):
  def refused(*_):
    raise OSError(errno.EIO, "broken disk")

  monkeypatch.setattr(fcntl, "flock", refused)
  with pytest.raises(OSError, match="broken disk"), run_folder.claimed(tmp_path / "run"):
    pass


def test_several_processes_write_one_file_and_lose_nothing(tmp_path):
  program = (
    "import sys\nfrom pathlib import Path\n"
    "from grpo_jax.tasks.jsonl import write_jsonl\n"
    "from grpo_jax.files.atomic import write_text\n"
    "for n in range(200):\n"
    "  write_text(Path(sys.argv[1]) / 'a.json', sys.argv[2] * 1000)\n"
    "  write_jsonl([{'who': sys.argv[2]}] * 50, Path(sys.argv[1]) / 'b.jsonl')\n"
  )
  writers = [
    subprocess.Popen([sys.executable, "-c", program, str(tmp_path), who], stderr=subprocess.PIPE)
    for who in "xy"
  ]
  said = [writer.communicate(timeout=120)[1].decode() for writer in writers]
  assert [writer.returncode for writer in writers] == [0, 0], "\n".join(said)
  assert (tmp_path / "a.json").read_text() in ("x" * 1000, "y" * 1000)
  rows = {line for line in (tmp_path / "b.jsonl").read_text().splitlines()}
  assert len(rows) == 1 and sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.jsonl"]


def test_threads_write_one_file_and_lose_nothing(tmp_path):
  writes = (
    lambda: atomic.write_text(tmp_path / "a.json", "x" * 1000),
    lambda: write_jsonl([{"x": 1}] * 50, tmp_path / "b.jsonl"),
    lambda: write_tensors(
      tmp_path / "c.safetensors",
      {"w": ((500,), np.dtype(np.float32))},
      [("w", np.ones(500, np.float32))],
    ),
  )
  for write in writes:
    with ThreadPoolExecutor(4) as threads:
      assert list(threads.map(lambda _, write=write: write(), range(100))) == [None] * 100
  assert len(list(tmp_path.iterdir())) == 3


def test_a_failed_write_of_tensors_leaves_nothing_behind(tmp_path):
  with pytest.raises(ValueError, match="expected"):
    write_tensors(
      tmp_path / "c.safetensors",
      {"w": ((500,), np.dtype(np.float32))},
      [("w", np.ones(499, np.float32))],
    )
  assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed_by_the_next_run(tmp_path):
  program = (
    "import os, sys\nfrom pathlib import Path\nfrom grpo_jax.files.atomic import replaced\n"
    "with replaced(Path(sys.argv[1])) as file:\n"
    "  file.write(b'half')\n  file.flush()\n  os.kill(os.getpid(), 9)\n"
  )
  run = tmp_path / "run"
  for folder in (run, run / "eval"):
    folder.mkdir()
    subprocess.run([sys.executable, "-c", program, str(folder / "x.json")])
    (folder / ".mine.partial").write_text("the user's")
  assert len(list(run.rglob("*.partial"))) == 4
  with run_folder.claimed(run):
    assert [path.name for path in run.rglob("*.partial")] == [".mine.partial"] * 2
    with atomic.replaced(run / "y.json") as file:  # a claim that fails touches nothing
      file.write(b"whole")
      with pytest.raises(run_folder.FolderInUse), run_folder.claimed(run):
        pass
    assert (run / "y.json").read_bytes() == b"whole"


@pytest.mark.parametrize("wrong", ["data", "prompts", "mesh", "weights"])
def test_a_refused_run_leaves_no_folder_behind(settings, tmp_path, wrong):
  config = dataclasses.replace(settings, run_dir=str(tmp_path / "runs" / "new" / "run"))
  if wrong == "data":
    config = dataclasses.replace(config, data=str(tmp_path / "nowhere.jsonl"))
  elif wrong == "prompts":
    config = dataclasses.replace(config, max_prompt_tokens=3)
  elif wrong == "mesh":
    config = dataclasses.replace(config, mesh="data:3")
  else:  # seen only once everything else is in order
    shutil.copytree(config.model, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = dataclasses.replace(config, model=str(tmp_path / "model"))
  before = sorted(tmp_path.iterdir())
  with pytest.raises(ValueError):
    train(config)
  assert sorted(tmp_path.iterdir()) == before
  (tmp_path / "runs" / "new" / "run").mkdir(parents=True)  # the user's own stays, and stays empty
  with pytest.raises(ValueError):
    train(config)
  assert not list((tmp_path / "runs" / "new" / "run").iterdir())


def test_a_refused_run_leaves_a_folder_as_it_was(copied):
  folder, config = copied
  (folder / ".lock").unlink()
  before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
  with pytest.raises(ValueError, match="seed"):
    train(dataclasses.replace(config, seed=7))
  assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before


def test_a_lock_that_was_removed_holds_nobody_off_and_is_made_anew(tmp_path, monkeypatch):
  lock, flock = tmp_path / "run" / ".lock", fcntl.flock
  removals = iter([True, True])

  def after_a_refused_run_ended(file, how):
    if next(removals, False):
      lock.unlink()
    flock(file, how)

  monkeypatch.setattr(fcntl, "flock", after_a_refused_run_ended)
  with run_folder.claimed(tmp_path / "run"):
    assert lock.read_text() == f"{os.getpid()}\n"
    with pytest.raises(run_folder.FolderInUse), run_folder.claimed(tmp_path / "run"):
      pass


@pytest.mark.parametrize("damage", ["missing", "torn early", "short"])
def test_checkpoints_that_metrics_do_not_reach_stop_the_run_and_stay(copied, damage):
  folder, config = copied
  path = folder / "metrics.jsonl"
  if damage == "missing":
    path.unlink()
  elif damage == "torn early":
    path.write_bytes(b"\0" * 40 + path.read_bytes()[40:])
  else:  # the checkpoints are of steps 2 and 4
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
  before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
  with pytest.raises(ValueError, match=r"checkpoints of steps 2, 4 .*metrics.jsonl is whole up to"):
    train(config)
  with pytest.raises(ValueError, match="--resume=never"):
    train(dataclasses.replace(config, resume="never"))
  assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before


def test_checkpoints_that_are_all_damaged_stop_the_run_and_stay(copied):
  folder, config = copied
  for step in (2, 4):
    largest = max((folder / "checkpoints" / str(step)).rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"steps 2, 4 .*is damaged.*start over") as caught:
    train(config)
  assert "\n" not in str(caught.value)
  with Checkpoints(folder, read_only=True) as checkpoints:
    assert checkpoints.steps() == [2, 4]


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
