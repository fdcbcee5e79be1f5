"""Preemption: the first SIGTERM or SIGINT asks for a checkpoint, the second leaves at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from grpo_jax import hosts

# sysexits' EX_TEMPFAIL: try again later. Launchers can tell it from a failure.
EXIT_STOPPED = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT)
log = logging.getLogger(__name__)


class Stopped(Exception):
  """The run was asked to stop, and has been checkpointed."""


class StopSignals:
  """Catches the signals while it is entered (in the main thread; elsewhere it does nothing)."""

  def __init__(self) -> None:
    self._requested = ""
    self._before: dict[signal.Signals, Any] = {}

  def check(self) -> None:
    """Ends what the caller does, between two phases, if a stop was asked for on any host.

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

  def __enter__(self) -> Self:
    if threading.current_thread() is threading.main_thread():
      self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
