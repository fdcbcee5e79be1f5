"""Bring your own reward: `path/to/file.py:function`, in worker processes with a time limit."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import IO, Any, get_args

from grpo_jax.files.redaction import redacted
from grpo_jax.rewards.batch import Reward
from grpo_jax.rewards.breakdown import RewardBreakdown, Shown
from grpo_jax.rewards.parsing.parser import ParseMode
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
    parse: which forms count as a call where the function does not say what a completion shows.

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
    parse: ParseMode = "strict",
  ) -> None:
    if time_limit <= 0 or workers < 1:
      raise ValueError(f"time_limit {time_limit} and workers {workers}: expected positive numbers")
    self.name = function
    self.maximum = maximum
    self._parse = parse
    self._on_error = float(on_error)
    self._time_limit = time_limit
    arguments = (str(Path(path)), function, str(time_limit))
    self._workers = [_Worker(arguments) for _ in range(workers)]
    self._finalizer = weakref.finalize(self, _end_all, self._workers)
    for worker in self._workers:
      if said := worker.ready().get("failed"):
        self.close()
        raise ValueError(f"reward {path}:{function} cannot be loaded: {said}")

  def score_batch(
    self, completions: Sequence[str], tasks: Sequence[ToolTask]
  ) -> list[RewardBreakdown]:
    """Scores `completions[i]` as an answer to `tasks[i]`; raises on no completion."""
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in self._workers:
      idle.put(worker)

    def ask(*request: Any) -> dict[str, Any]:
      worker = idle.get()
      try:
        return worker.ask(request, self._time_limit)
      finally:
        idle.put(worker)

    with ThreadPoolExecutor(len(self._workers)) as threads:  # a thread waits for each process
      answers = list(threads.map(ask, completions, tasks))
    return list(map(self._read, answers, completions, tasks))

  def close(self) -> None:
    """Ends the worker processes."""
    _end_all(self._workers)

  def _read(self, answer: dict[str, Any], completion: str, task: ToolTask) -> RewardBreakdown:
    if "failed" in answer:
      return self._failed(answer.get("code", "reward_crash"), answer["failed"])
    shown: Shown | None = answer.get("shown")
    if shown is None or shown not in get_args(Shown):  # a plain number: the rule says it
      shown = score(completion, task, parse=self._parse).shown
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


class _Worker:
  """One process, which answers one request at a time; one that has ended is started again."""

  def __init__(self, arguments: Sequence[str]) -> None:
    self._arguments = arguments
    self._start()

  def _start(self) -> None:
    self._connection, theirs = Pipe()
    # A file and not a pipe: nobody has to read along. It holds what a crash leaves behind.
    self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    path = os.pathsep.join([str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")])
    self._process = subprocess.Popen(
      # Not multiprocessing: a spawned child would import the training script, and so jax.
      [sys.executable, "-m", "grpo_jax.rewards.worker", str(theirs.fileno()), *self._arguments],
      pass_fds=[theirs.fileno()],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=self._log,
      env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"},
      start_new_session=True,
    )
    theirs.close()
    self._alive = True

  def ready(self) -> dict[str, Any]:
    """Waits until the function is loaded; a `failed` in the answer says why it is not."""
    if not self._connection.poll(_START_LIMIT):
      self.end()
      return {"failed": f"importing it took over {_START_LIMIT} seconds"}
    answer = self._receive()
    if "failed" in answer:
      self.end()
    return answer

  def ask(self, request: tuple[Any, ...], time_limit: float) -> dict[str, Any]:
    """The answer to a request, or in `failed` and `code` why there is none."""
    if not self._alive:
      self._start()
      # It could be loaded when the run began: where it cannot now, the next request tries again.
      if "failed" in (answer := self.ready()):
        return answer
    self._bound_log()
    with suppress(OSError):  # a process that is gone: what follows says so
      self._connection.send(request)
    if not self._connection.poll(time_limit):
      self.end()
      return {"failed": f"no result after {time_limit} seconds", "code": "reward_timeout"}
    return self._receive()

  def _receive(self) -> dict[str, Any]:
    """Reads one answer; a process that is gone answers with what it left behind."""
    try:
      return json.loads(self._connection.recv_bytes())
    except (EOFError, OSError):
      self.end()
      code = self._process.returncode
      how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
      size = self._log.seek(0, os.SEEK_END)
      self._log.seek(max(0, size - 4000))
      last_words = self._log.read().decode("utf-8", "replace")
      return {"failed": f"the process ended ({how})\n{last_words}".strip()}

  def end(self) -> None:
    """Ends the process and everything that it started."""
    self._alive = False
    self._connection.close()
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
