"""Files that are replaced at once or not at all, whoever else writes them."""

import contextlib
import errno
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.partial")  # what a killed process was writing


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
  """Opens a file to write that takes the place of `path` at the end, unless something is raised.

  Until then it lies beside it under a name of its own: processes and hosts that write the same file
  at once all succeed, and one of them is the last.

  Raises:
    OSError: it could not be written; what was there before is as it was.
  """
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
  try:
    with partial.open("xb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
  """Writes a UTF-8 file that after a crash, or on a full disk, is the old one or the new one.

  Raises:
    OSError: it could not be written; what was there before is as it was.
  """
  with replaced(path) as file:
    file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
  """Writes indented JSON as `write_text` writes text, and makes the folder that it goes into."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def disk_is_full(error: BaseException | None) -> bool:
  """Whether an error, or what it came from, is a disk or quota without room.

  TensorStore reports its errors as text, so the text is looked at too.
  """
  while error is not None:
    if isinstance(error, OSError) and error.errno in FULL:
      return True
    said = str(error)
    if any(os.strerror(code) in said for code in FULL):
      return True
    error = error.__cause__ or error.__context__
  return False
