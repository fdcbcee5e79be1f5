"""Preemption: the first SIGTERM or SIGINT asks for a checkpoint, the second leaves at once."""

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Self

from grpo_jax.runs import hosts

# sysexits' EX_TEMPFAIL: try again later. Launchers can tell it from a failure.
EXIT_STOPPED = os.EX_TEMPFAIL
SIGNALS = (signal.SIGTERM, signal.SIGINT)
log = logging.getLogger(__name__)


class Stopped(Exception):
  """The run was asked to stop, and has been checkpointed."""


class _Handlers:
  """Installs `_handle` for signals while it is entered; does nothing outside the main thread."""

  def _signals(self) -> Sequence[signal.Signals]:
    return SIGNALS

  def _handle(self, number: int, frame: FrameType | None) -> None:
    raise NotImplementedError

  def __enter__(self) -> Self:
    in_main = threading.current_thread() is threading.main_thread()
    wanted = self._signals() if in_main else ()
    self._before = {number: signal.signal(number, self._handle) for number in wanted}
    return self

  def __exit__(self, *error: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)


class StopSignals(_Handlers):
  """Turns the first SIGTERM or SIGINT into a request to stop, which `check` raises."""

  def __init__(self) -> None:
    self._requested = ""

  def check(self) -> None:
    """Raises `Stopped` if a stop was requested on any host; to be called between two phases.

    Every host must call this equally often: they agree on the answer.

    Raises:
      Stopped: a signal came.
    """
    if hosts.any_host(bool(self._requested)):
      raise Stopped(f"stopped by {self._requested or 'a signal on another host'}")

  def _handle(self, number: int, frame: FrameType | None) -> None:
    if self._requested:
      os._exit(128 + number)
    self._requested = signal.Signals(number).name
    log.warning(
      "%s: finishing this phase and writing a checkpoint; once more leaves at once", self._requested
    )


class ChildRuns(_Handlers):
  """Runs training scripts one by one; a signal goes to the one that runs, which is waited for.

  It does so while it is entered (in the main thread; elsewhere signals do what they did). A script
  leaves at once at the second signal, so it gets a process group of its own: a terminal sends
  Ctrl-C to all of a group, and it would come twice.

  Attributes:
    stopped_by: the signal that came, if one did.
  """

  def __init__(self) -> None:
    self.stopped_by = ""
    self._running: int | None = None
    self._pending: int | None = None

  def run(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, float]:
    """Runs a command to its end; returns its exit status and the most memory it held, in GiB."""
    process = subprocess.Popen(command, env=environment, process_group=0)
    try:
      self._running = process.pid
      if self._pending is not None:  # it came while the process was being made
        os.kill(process.pid, self._pending)
      _, status, usage = os.wait4(process.pid, 0)
      self._running = None
    except BaseException:
      process.kill()
      process.wait()
      raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 2**20

  def _handle(self, number: int, frame: FrameType | None) -> None:
    self.stopped_by = signal.Signals(number).name
    forwarded = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
    if self._running is None:
      self._pending = forwarded
      return
    with contextlib.suppress(ProcessLookupError):  # it has just ended
      os.kill(self._running, forwarded)
    log.warning("%s: waiting for the run to write its checkpoint", self.stopped_by)

  def _signals(self) -> list[signal.Signals]:
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [n for n in wanted if signal.getsignal(n) is not signal.SIG_IGN]  # as under nohup
