"""The run folder: a lock for one process at a time, and JSONL read up to the first bad line."""

import contextlib
import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from grpo_jax.files.atomic import PARTIAL

# What flock says where there are no locks: Lustre without `-o flock`, some NFS and FUSE mounts.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
log = logging.getLogger(__name__)


class FolderInUse(ValueError):
  """Another process writes into the run folder."""


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
  """Locks the run folder against other processes; the kernel frees the lock when this one dies.

  A file system without locks cannot do that: a warning says so, and the run goes on. What ends in
  an error leaves neither a lock nor an empty folder that it made itself.

  Raises:
    FolderInUse: another process holds it.
    OSError: the folder cannot be made or written.
  """
  new, lock = missing_folders(run_dir), run_dir / ".lock"
  with contextlib.ExitStack() as undone:  # on an error, the last first
    undone.callback(remove_empty, new)
    run_dir.mkdir(parents=True, exist_ok=True)
    lock_is_new = not lock.exists()
    file = undone.enter_context(_locked(lock))
    if lock_is_new:
      undone.callback(lock.unlink, missing_ok=True)
    file.truncate(0)
    print(os.getpid(), file=file, flush=True)
    yield
    undone.pop_all()
    file.close()


def _locked(lock: Path) -> TextIO:
  """The lock file of a run folder, open, and held until it is closed."""
  while True:
    file = lock.open("a+", encoding="utf-8")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      owner = file.read().strip() or "unknown"
      file.close()
      raise FolderInUse(
        f"{lock.parent} is in use by another process (pid {owner}); wait for it or choose another "
        "--run_dir"
      ) from None
    except OSError as error:
      if error.errno not in NO_LOCKS:
        file.close()
        raise
      log.warning(
        "the file system of %s has no file locks (%s): see to it yourself that no second process "
        "works on this folder", lock.parent, error,
      )  # fmt: skip
      return file
    if _lies_at(file, lock):
      for path in lock.parent.rglob(".*.partial"):  # what a killed process was writing
        if PARTIAL.fullmatch(path.name):
          path.unlink(missing_ok=True)
      return file
    file.close()  # of a run that was refused, and has removed it in the meantime


def _lies_at(file: TextIO, path: Path) -> bool:
  """Whether the open file is still the one of that name."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False


def missing_folders(path: Path) -> list[Path]:
  """The folders that would have to be made for `path` to be one, the innermost first."""
  return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
  """Removes folders, the innermost first, up to the first that holds something."""
  for folder in folders:
    try:
      folder.rmdir()
    except OSError:
      return


def whole_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
  """The lines of a JSONL file of consecutive steps from 0 on, up to the first that is damaged.

  A line cut short by a crash, unreadable, or out of turn ends the list: what follows it cannot be
  trusted to be a record of the same run.

  Returns:
    For each line its text and its values; empty when there is no file.
  """
  if not path.exists():
    return []
  found: list[tuple[str, dict[str, Any]]] = []
  for raw in path.read_bytes().splitlines(keepends=True):
    try:
      text = raw.decode()
      values = json.loads(text)
    except ValueError:
      break
    if not raw.endswith(b"\n") or not isinstance(values, dict) or values.get("step") != len(found):
      break
    found.append((text, values))
  return found
