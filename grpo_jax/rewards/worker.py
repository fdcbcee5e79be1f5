"""The process in which somebody else's reward function runs: `python -m grpo_jax.rewards.worker`.

It imports the user's file and nothing heavy (no jax), answers one request at a time, and dies
rather than outlive its parent.
"""

import asyncio
import faulthandler
import importlib.util
import inspect
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from numbers import Real
from pathlib import Path
from typing import Any

from grpo_jax.rewards.breakdown import RewardBreakdown
from grpo_jax.tasks.schema import ToolTask

#: A call that runs this many times its limit ends the process even if the parent is gone.
_LIMIT_FACTOR = 2.0
_MAX_TEXT = 8000
#: A larger number is no reward: its square overflows the float32 of the training step.
MAX_REWARD = 1e9


class NotFound(ValueError):
  """There is no such file, or no such function in it."""


def load_function(path: str, name: str) -> Callable[..., Any]:
  """Imports a function from a file; its folder becomes importable, as for a script.

  Raises:
    NotFound: no such file or function. Whatever the file raises goes through.
  """
  if not Path(path).is_file():
    raise NotFound(f"{path}: no such file")
  sys.path.insert(0, str(Path(path).resolve().parent))
  spec = importlib.util.spec_from_file_location(Path(path).stem, path)
  if spec is None or spec.loader is None:
    raise NotFound(f"{path}: not a Python file")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  function = getattr(module, name, None)
  if not callable(function):
    names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
    raise NotFound(f"{path} has no function {name!r}; it has {', '.join(names) or 'none'}")
  return function


class InvalidResult(ValueError):
  """What a reward function returned is not a finite reward."""


def call_reward(function: Callable[..., Any], completion: str, task: ToolTask) -> dict[str, Any]:
  """Calls a reward function in either signature and returns its result as plain values.

  A function with a parameter `solution_str` is called as verl calls it: `data_source`,
  `solution_str`, `ground_truth` (the task's answer as text) and `extra_info` by name, as far as it
  has them; any other as `function(completion, task)`. The result may be a number, a
  `RewardBreakdown`, or verl's mapping with `score`, whose other numbers become parts.

  Raises:
    InvalidResult: the result is none of these, not finite, or beyond `MAX_REWARD`. Whatever the
      function raises goes through.
  """
  parameters = inspect.signature(function).parameters
  if "solution_str" in parameters:
    by_name = {
      "data_source": task.data_source,
      "solution_str": completion,
      "ground_truth": task.answer,
      "extra_info": dict(task.extra),
    }
    if not any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values()):
      by_name = {name: value for name, value in by_name.items() if name in parameters}
    result = function(**by_name)
  else:
    result = function(completion, task)
  if inspect.isawaitable(result):
    result = asyncio.run(_awaited(result))
  return _plain(result)


async def _awaited(result: Any) -> Any:
  return await result


def _plain(result: Any) -> dict[str, Any]:
  if isinstance(result, RewardBreakdown):
    return {
      "total": _finite(result.total),
      "error": None if result.error is None else str(result.error),
      "parts": {str(name): _finite(value) for name, value in result.parts.items()},
      "wrong_arguments": [str(name) for name in result.wrong_arguments],
      "shown": str(result.shown),
      "detail": str(result.detail)[:_MAX_TEXT],
    }
  if isinstance(result, Mapping):
    if "score" not in result:
      raise InvalidResult(f"returned {result!r:.200}; a mapping must hold a score")
    numbers = {
      str(name): float(value)
      for name, value in result.items()
      if name != "score" and isinstance(value, Real) and abs(float(value)) <= MAX_REWARD
    }
    return {"total": _finite(result["score"]), "parts": numbers}
  return {"total": _finite(result)}


def _finite(value: Any) -> float:
  # The scalars of numpy and torch are no `Real`s, but know how to become floats; text does not.
  try:
    number = float(value) if hasattr(value, "__float__") else math.nan
  except (TypeError, ValueError, OverflowError, RuntimeError):
    number = math.nan
  if not abs(number) <= MAX_REWARD:
    raise InvalidResult(
      f"returned {value!r:.200}; expected a finite number (at most {MAX_REWARD:g}) or a "
      "RewardBreakdown"
    )
  return number


def serve(connection: Connection, path: str, name: str, time_limit: float) -> None:
  """Loads the function, says so, and answers requests until the connection closes."""
  try:
    function = load_function(path, name)
  except NotFound as missing:
    _send(connection, {"failed": str(missing)})
    return
  except BaseException:
    _send(connection, {"failed": traceback.format_exc()})
    return
  _send(connection, {"ready": True})
  while True:
    try:
      completion, task = connection.recv()
    except EOFError:
      return
    signal.setitimer(signal.ITIMER_REAL, time_limit * _LIMIT_FACTOR + 1.0)
    try:
      answer = call_reward(function, completion, task)
    except InvalidResult as invalid:
      answer = {"failed": str(invalid), "code": "reward_invalid"}
    except BaseException:  # sys.exit() in a reward must not end the worker either
      answer = {"failed": traceback.format_exc()[-_MAX_TEXT:], "code": "reward_error"}
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    _send(connection, answer)


def _send(connection: Connection, answer: Mapping[str, Any]) -> None:
  """Sends an answer; half a surrogate pair, which no file can hold, becomes a question mark."""
  connection.send_bytes(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))


def main(arguments: list[str]) -> None:
  """Runs as the child of `CustomReward`: file descriptor, file, function, limit in seconds."""
  descriptor, path, name, time_limit = arguments
  faulthandler.enable()
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  # Ctrl-C is for the parent, which then closes the connection.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  os.set_inheritable(int(descriptor), False)
  serve(Connection(int(descriptor)), path, name, float(time_limit))


if __name__ == "__main__":
  main(sys.argv[1:])
