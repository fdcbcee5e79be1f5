"""Bring your own reward: `path/to/file.py:function`, in worker processes with a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, get_args

from grpo_jax.files.redaction import redacted
from grpo_jax.rewards.batch import Reward
from grpo_jax.rewards.breakdown import RewardBreakdown, Shown
from grpo_jax.rewards.tiers import score
from grpo_jax.tasks.schema import ToolTask

_START_LIMIT = 60.0  # seconds for a worker to import the user's file
_MAX_LOG = 1 << 20  # bytes of a worker's stderr that are kept
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class CustomReward(Reward):
  """A reward function from a file, run in worker processes.

  An exception, a call over its time limit, a result that is not finite or a process that ends
  (`reward_error`, `reward_timeout`, `reward_invalid`, `reward_crash`) scores `on_error`, is counted
  in `failures()`, and never raises: the batch goes on in a fresh process.

  Args:
    path: a Python file.
    function: the name of a function in it, see `worker.call_reward` for its signature.
    on_error: the total of a completion that could not be scored.
    time_limit: seconds for one call.
    workers: number of processes.
    maximum: the best total the function gives, when known.

  Raises:
    ValueError: a setting out of range, or the function cannot be loaded (with the reason).
  """

  def __init__(
    self,
    path: str,
    function: str,
    *,
    on_error: float = 0.0,
    time_limit: float = 5.0,
    workers: int = 2,
    maximum: float | None = None,
  ) -> None:
    if time_limit <= 0 or workers < 1:
      raise ValueError(f"time_limit {time_limit} and workers {workers}: expected positive numbers")
    self.name = function
    self.maximum = maximum
    self._on_error = float(on_error)
    self._time_limit = time_limit
    self._arguments = (str(Path(path)), function, str(time_limit))
    self._workers: list[_Worker] = []
    self._finalizer = weakref.finalize(self, _end_all, self._workers)
    try:
      for _ in range(workers):
        self._workers.append(_Worker(self._arguments))
      for worker in self._workers:
        worker.wait_until_ready()
    except _StartFailed as failed:
      self.close()
      raise ValueError(f"reward {path}:{function} cannot be loaded: {failed}") from None

  def score_batch(
    self, completions: Sequence[str], tasks: Sequence[ToolTask]
  ) -> list[RewardBreakdown]:
    """Scores `completions[i]` as an answer to `tasks[i]`; raises on no completion."""
    found: dict[int, RewardBreakdown] = {}
    waiting = deque(enumerate(zip(completions, tasks, strict=True)))
    while waiting or any(worker.busy for worker in self._workers):
      for slot, worker in enumerate(self._workers):
        if not worker.busy and waiting:
          index, request = waiting.popleft()
          if not worker.alive:
            self._workers[slot] = worker = self._replaced(worker)
          if not worker.submit(index, request, self._time_limit):
            found[index] = self._failed("reward_crash", worker.last_words())
      busy = [worker for worker in self._workers if worker.busy]
      if not busy:
        continue
      pause = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
      ready = wait([worker.connection for worker in busy], pause)
      for worker in busy:
        if worker.connection in ready:
          index = worker.index
          found[index] = self._read(worker.receive(), completions[index], tasks[index])
        elif time.monotonic() >= worker.deadline:
          worker.end()
          said = f"no result after {self._time_limit} seconds"
          found[worker.index] = self._failed("reward_timeout", said)
    return [found[index] for index in range(len(completions))]

  def close(self) -> None:
    """Ends the worker processes."""
    _end_all(self._workers)

  def _replaced(self, worker: _Worker) -> _Worker:
    worker.end()
    fresh = _Worker(self._arguments)
    try:
      fresh.wait_until_ready()
    except _StartFailed:
      # It could be loaded when the run began: the next request finds it dead and tries again.
      fresh.end()
    return fresh

  def _read(self, answer: dict[str, Any], completion: str, task: ToolTask) -> RewardBreakdown:
    if "failed" in answer:
      return self._failed(answer.get("code", "reward_crash"), answer["failed"])
    shown: Shown | None = answer.get("shown")
    if shown is None or shown not in get_args(Shown):  # a plain number: the rule says it
      shown = score(completion, task).shown
    return RewardBreakdown(
      total=answer["total"],
      error=answer.get("error"),
      parts=answer.get("parts", {}),
      wrong_arguments=tuple(answer.get("wrong_arguments", ())),
      shown=shown,
      detail=answer.get("detail", ""),
    )

  def _failed(self, code: str, said: str) -> RewardBreakdown:
    said = redacted(said)  # a request that fails names its URL
    self._count_failure(code, said)
    lines = said.strip().splitlines() or [""]
    # A traceback ends with what matters; everything else begins with it.
    return RewardBreakdown(self._on_error, code, detail=lines[-(code == "reward_error")])


class _StartFailed(Exception):
  """A worker did not come up; the text says why."""


class _Worker:
  """One process and the request it works on.

  Attributes:
    connection: to the process.
    busy: whether it works on a request.
    index: the completion of that request, or of the last one.
    deadline: when that must be done, on the monotonic clock, in seconds.
    alive: whether it takes requests.
  """

  def __init__(self, arguments: Sequence[str]) -> None:
    self.busy = False
    self.index = -1
    self.deadline = 0.0
    self.alive = True
    self.connection, theirs = Pipe()
    # A file and not a pipe: nobody has to read along. It holds what a crash leaves behind.
    self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    path = os.pathsep.join([str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")])
    self._process = subprocess.Popen(
      # Not multiprocessing: a spawned child would import the training script, and so jax.
      [sys.executable, "-m", "grpo_jax.rewards.worker", str(theirs.fileno()), *arguments],
      pass_fds=[theirs.fileno()],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=self._log,
      env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"},
      start_new_session=True,
    )
    theirs.close()

  def wait_until_ready(self) -> None:
    if not self.connection.poll(_START_LIMIT):
      self.end()
      raise _StartFailed(f"importing it took over {_START_LIMIT} seconds")
    answer = self.receive()
    if "failed" in answer:
      self.end()
      raise _StartFailed(answer["failed"])

  def submit(self, index: int, request: tuple[str, ToolTask], time_limit: float) -> bool:
    """Sends a request; False when the process is gone."""
    self._bound_log()
    try:
      self.connection.send(request)
    except OSError:
      self.end()
      return False
    self.busy, self.index = True, index
    self.deadline = time.monotonic() + time_limit
    return True

  def receive(self) -> dict[str, Any]:
    """Reads one answer; a process that is gone answers with what it left behind."""
    self.busy = False
    try:
      return json.loads(self.connection.recv_bytes())
    except (EOFError, OSError):
      self.end()
      code = self._process.returncode
      how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
      return {"failed": f"the process ended ({how})\n{self.last_words()}".strip()}

  def last_words(self) -> str:
    """The end of what the process wrote to stderr."""
    if self._log.closed:
      return ""
    size = self._log.seek(0, os.SEEK_END)
    self._log.seek(max(0, size - 4000))
    return self._log.read().decode("utf-8", "replace")

  def end(self) -> None:
    """Ends the process and everything that it started."""
    self.busy = self.alive = False
    self.connection.close()
    if self._process.returncode is None:  # once it is known, the id may be somebody else's
      with suppress(ProcessLookupError):
        os.killpg(self._process.pid, signal.SIGKILL)
      self._process.wait()

  def _bound_log(self) -> None:
    if self._log.seek(0, os.SEEK_END) > _MAX_LOG:
      self._log.truncate(0)
      self._log.seek(0)  # the process writes where this points


def _end_all(workers: Sequence[_Worker]) -> None:
  for worker in workers:
    worker.end()
