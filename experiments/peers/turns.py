"""How a peer's program takes its turns: one step for each line on its standard input.

Runs inside the peer's environment, so it needs nothing but the standard library.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

MARK = "BENCHMARK "  # before each of our lines on a standard output that others write to as well


class Turns:
  """The conversation with the benchmark that started this program.

  Attributes:
    work: what to do, from the file named on the command line.
  """

  def __init__(self) -> None:
    self._imported = time.perf_counter()
    with open(sys.argv[1], encoding="utf-8") as file:
      self.work: dict[str, Any] = json.load(file)

  def ready(self) -> None:
    """Says that everything is loaded."""
    self._tell({"ready": time.perf_counter() - self._imported})

  def wait(self) -> None:
    """Blocks until it is this program's turn; exits when there will be no more."""
    if not sys.stdin.readline():
      sys.exit(0)
    self._began = time.perf_counter()

  def done(self, sample: float, update: float, tokens: int) -> None:
    """Reports a step.

    Args:
      sample: seconds until the candidates were there.
      update: seconds of the training part.
      tokens: sampled tokens.
    """
    self._tell(
      {
        "sample": sample,
        "update": update,
        "total": time.perf_counter() - self._began,
        "tokens": tokens,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
      }
    )

  def _tell(self, line: dict[str, float]) -> None:
    print(f"\n{MARK}{json.dumps(line)}", flush=True)


def share_of_sevens(completions: list[str], **_: Any) -> list[float]:
  """A reward that any text has; it costs nothing beside the step."""
  return [text.count("7") / 100 for text in completions]
