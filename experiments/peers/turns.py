"""How a peer's program takes its turns: one step for each line on its standard input.

Runs inside the peer's environment, so it needs nothing but the standard library.
"""

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

MARK = "BENCHMARK "  # before each of our lines on a standard output that others write to as well


class Turns:
  """The conversation with the benchmark that started this program.

  Attributes:
    work: what to do, from the file named on the command line.
    seconds: of this step so far, by the name of what was `timed`.
    tokens: sampled in this step so far.
  """

  def __init__(self) -> None:
    self._imported = time.perf_counter()
    self.seconds: defaultdict[str, float] = defaultdict(float)
    self.tokens = 0
    with open(sys.argv[1], encoding="utf-8") as file:
      self.work: dict[str, Any] = json.load(file)

  def ready(self) -> None:
    """Says that everything is loaded."""
    self._tell({"ready": time.perf_counter() - self._imported})

  def wait(self) -> None:
    """Blocks until it is this program's turn; exits when there will be no more."""
    if not sys.stdin.readline():
      sys.exit(0)
    self.seconds.clear()
    self.tokens = 0
    self._began = time.perf_counter()

  def timed(
    self, name: str, call: Callable[..., Any], tokens: Callable[[Any], int] = lambda out: 0
  ) -> Callable[..., Any]:
    """A function that counts how long another one takes, and the tokens in what it returns."""

    def timed_call(*args: Any, **kwargs: Any) -> Any:
      began = time.perf_counter()
      out = call(*args, **kwargs)
      self.seconds[name] += time.perf_counter() - began
      self.tokens += tokens(out)
      return out

    return timed_call

  def trained(self) -> None:
    """Reports a step of which `sample` and, around it, `score` were `timed`; the rest trains."""
    update = time.perf_counter() - self._began - self.seconds["score"]
    self.done(self.seconds["sample"], update, self.tokens)

  def done(
    self, sample: float, update: float, tokens: int, device_gib: float | None = None
  ) -> None:
    """Reports a step.

    Args:
      sample: seconds until the candidates were there.
      update: seconds of the training part.
      tokens: sampled tokens, up to and with each candidate's stop token.
      device_gib: peak memory of the device; None says that of this process.
    """
    own_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    self._tell(
      {
        "sample": sample,
        "update": update,
        "total": time.perf_counter() - self._began,
        "tokens": tokens,
        "peak_memory_gib": own_gib if device_gib is None else device_gib,
      }
    )

  def _tell(self, line: dict[str, float]) -> None:
    print(f"\n{MARK}{json.dumps(line)}", flush=True)


def rewards(completions: list[str], wanted: list[str] | None = None, **_: Any) -> list[float]:
  """Rewards that cost nothing beside the step: by the wanted answers where there are some."""
  if wanted is None:
    return [text.count("7") / 100 for text in completions]
  return [text_reward(text, answer) for text, answer in zip(completions, wanted, strict=True)]


def text_reward(text: str, wanted: str) -> float:
  """The same as that of grpo_jax/benchmarking/work.py."""
  text = text.strip()
  if wanted.startswith("["):
    same_tool = text.split('"arguments"')[0] == wanted.split('"arguments"')[0]
    return 1.0 if text == wanted else 0.5 * same_tool
  asks = ("?" in text) == ("?" in wanted)
  return float(asks and bool(text) and not text.startswith("["))
