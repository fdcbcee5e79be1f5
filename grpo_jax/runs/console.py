"""Console output of a run: our own log and a progress bar; all else goes into `log.txt`."""

import contextlib
import logging
import logging.handlers
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

OURS = "grpo_jax"
LINE_SECONDS = 5.0  # between two lines of a bar that no terminal shows


class Progress:
  """Steps with a bar, or with a line every few seconds where the stream is no terminal.

  Args:
    first: the step to begin with.
    steps: how many there are in all.
    shown: False shows nothing.
    stream: where to.
    name: of what goes on.
    unit: of what is counted.
  """

  def __init__(
    self,
    first: int,
    steps: int,
    *,
    shown: bool = True,
    stream: TextIO | None = None,
    name: str = "GRPO",
    unit: str = "step",
  ) -> None:
    self._first, self._steps, self._stream, self._unit = first, steps, stream or sys.stderr, unit
    self._lines = shown and not self._stream.isatty()
    self._bar = tqdm(
      total=steps, desc=name, initial=first, unit=unit, file=self._stream,
      disable=not shown or self._lines,
    )  # fmt: skip
    self._began = self._said = time.monotonic()

  def __iter__(self) -> Iterator[int]:
    with contextlib.closing(self._bar):
      yield from range(self._first, self._steps)

  def show(self, done: int, **values: str) -> None:
    """Shows that so many steps are done, and some values of the newest."""
    self._bar.set_postfix(values, refresh=False)
    self._bar.update(done - self._bar.n)
    now = time.monotonic()
    if self._lines and done > self._first and (now - self._said >= LINE_SECONDS or done == self._steps):
      self._said = now
      each = (now - self._began) / (done - self._first)
      left = time.strftime("%H:%M:%S", time.gmtime(each * (self._steps - done)))
      text = "".join(f"{name} {value}  " for name, value in values.items())
      print(
        f"{self._unit} {done}/{self._steps}  {text}{each:.2f} s/{self._unit}  {left} left",
        file=self._stream, flush=True,
      )  # fmt: skip
    if done == self._steps:
      self._bar.close()


class LogFile(logging.handlers.MemoryHandler):
  """Writes records to `log.txt` of a run folder, from when the run has begun.

  What comes before waits: a run that is refused leaves no folder.

  Args:
    run_dir: the run folder; the run has begun when it holds config.json.
  """

  def __init__(self, run_dir: Path) -> None:
    self._config = run_dir / "config.json"
    self._file = logging.FileHandler(run_dir / "log.txt", "a", "utf-8", delay=True, errors="replace")
    form = "%(asctime)s %(levelname).1s %(name)s:%(lineno)d %(message)s"
    self._file.setFormatter(logging.Formatter(form))
    super().__init__(0, target=self._file, flushOnClose=False)

  def shouldFlush(self, record: logging.LogRecord) -> bool:
    """Whether the file may be made."""
    return self._config.exists()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()
    super().close()


class _Screen(logging.Handler):
  """Our own words, above a bar if there is one; warnings are marked."""

  def emit(self, record: logging.LogRecord) -> None:
    mark = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
    try:
      tqdm.write(mark + self.format(record), file=sys.stderr)
    except Exception:
      self.handleError(record)


@contextlib.contextmanager
def quiet(run_dir: Path) -> Iterator[None]:
  """Shows what this package says and nothing else; all that is logged goes into `log.txt`."""
  root, ours = logging.getLogger(), logging.getLogger(OURS)
  before = root.handlers[:], root.level, ours.level
  file, screen = LogFile(run_dir), _Screen()
  screen.addFilter(logging.Filter(OURS))
  root.handlers[:] = [file, screen]
  root.setLevel(logging.INFO)
  ours.setLevel(logging.INFO)
  logging.captureWarnings(True)
  # It has handlers of its own, and advice at its first import.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers.utils.logging as transformers_logging

  transformers_logging.disable_default_handler()
  transformers_logging.enable_propagation()
  try:
    yield
  finally:
    file.close()
    root.handlers[:], root.level, ours.level = before[0], before[1], before[2]
    logging.captureWarnings(False)
