"""What parsing a completion gives: calls or an error code, and the limits that hold for both."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_jax.files.assets import read_asset
from grpo_jax.files.json_text import MAX_DEPTH, MAX_DIGITS
from grpo_jax.tasks.schema import ToolCall

MAX_CHARS = 65_536
MAX_CALLS = 128

#: Every value of `ParseResult.error`, with its meaning.
PARSE_ERRORS: Mapping[str, str] = {
  code: meaning.format(digits=MAX_DIGITS, depth=MAX_DEPTH, chars=MAX_CHARS, calls=MAX_CALLS)
  for code, meaning in read_asset("error_codes")["parser"].items()
}

OPEN_TAG, CLOSE_TAG = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class ParseResult:
  """The calls in a text, or why there are none; exactly one of `calls` and `error` is set.

  Attributes:
    calls: the calls, in order.
    error: one of `PARSE_ERRORS`, or None.
    form: how the calls were written: `list` or `blocks`; in `auto` also `object` and `python`.
    strict: whether `strict` takes calls that are written so.
  """

  calls: tuple[ToolCall, ...] = ()
  error: str | None = None
  form: str = ""
  strict: bool = True

  @property
  def attempted(self) -> bool:
    """Whether a call was made or meant, well or badly."""
    return self.error not in ("empty", "text")


_CALL_START = re.compile(r"[\[{]|```|<tool_call|<\|python_tag\||\[?[A-Za-z_][\w.]*\(")
_CALL_SIGNS = (OPEN_TAG, CLOSE_TAG, PYTHON_TAG, '{"name"', '[{"')


def has_call_sign(text: str) -> bool:
  """Whether a text holds what only calls hold, anywhere."""
  if any(sign in text for sign in _CALL_SIGNS):
    return True
  return '"name"' in text and ('"arguments"' in text or '"parameters"' in text)


def looks_like_call(text: str) -> bool:
  """Whether a text that holds no accepted call was still meant as one, or quotes one."""
  return _CALL_START.match(text) is not None or has_call_sign(text)


def read_call(value: Any) -> ToolCall | None:
  """Reads `{"name": text, "arguments": object}` with exactly these keys, or returns None."""
  if not isinstance(value, dict) or len(value) != 2:
    return None
  name, arguments = value.get("name"), value.get("arguments")
  if not isinstance(name, str) or not name or not isinstance(arguments, dict):
    return None
  return ToolCall(name, arguments)
