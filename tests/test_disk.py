"""Full disks, locks, and several writers of one file."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small_run import assert_same_run

from grpo_jax.files import atomic
from grpo_jax.models.tensor_file import write_tensors
from grpo_jax.runs import folder as run_folder
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.tasks.jsonl import write_jsonl
from grpo_jax.train import TrainingFailed, train


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
