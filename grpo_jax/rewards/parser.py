"""Text to calls. Never raises, never evaluates; linear time, bounded depth and size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from grpo_jax.rewards.json_text import MAX_DEPTH, MAX_DIGITS, WHITESPACE, decode_at
from grpo_jax.schema import ToolCall

ParseMode = Literal["strict", "auto"]
PARSE_MODES: tuple[ParseMode, ...] = get_args(ParseMode)

MAX_CHARS = 65_536
MAX_CALLS = 128

#: Every value of `ParseResult.error`, with its meaning.
PARSE_ERRORS: Mapping[str, str] = MappingProxyType(
  {
    "empty": "nothing but white space",
    "text": "plain text without any sign of a call",
    "bad_json": "begins like a call, and is not JSON (cut off, a missing comma, single quotes)",
    "not_a_call": "JSON, but not calls: each is exactly an object with name and arguments",
    "empty_list": "an empty list of calls",
    "surrounding_text": "a call with text before, between or after",
    "other_form": "a call in a form that this mode does not take",
    "mixed_forms": "calls in more than one form",
    "duplicate_key": "an object with the same key twice",
    "not_finite": "NaN or an infinity",
    "huge_number": f"a number of more than {MAX_DIGITS} digits, or beyond a float's range",
    "lone_surrogate": "half of a surrogate pair, which no file can hold",
    "too_deep": f"nested deeper than {MAX_DEPTH}",
    "too_long": f"more than {MAX_CHARS} characters",
    "too_many_calls": f"more than {MAX_CALLS} calls",
    "not_literal": "Python-call syntax with positional arguments, or values that are no literals",
  }
)


@dataclass(frozen=True, slots=True)
class ParseResult:
  """The calls in a text, or why there are none; exactly one of `calls` and `error` is set.

  Attributes:
    calls: the calls, in order.
    error: one of `PARSE_ERRORS`, or None.
    form: how the calls were written: `list` or `blocks`; in `auto` also `object`, `parameters`,
      `python`.
  """

  calls: tuple[ToolCall, ...] = ()
  error: str | None = None
  form: str = ""

  @property
  def attempted(self) -> bool:
    """Whether a call was made or meant, well or badly."""
    return self.error not in ("empty", "text")


def parse(text: str, mode: ParseMode = "strict") -> ParseResult:
  """Reads the calls that a completion makes.

  `strict` takes exactly two forms with nothing but white space around them:
  `[{"name": ..., "arguments": {...}}, ...]`, and one or more of Qwen's
  `<tool_call>{...}</tool_call>` blocks. `auto` also takes what `auto_parser` knows.

  Args:
    text: a completion, without the end-of-turn token.
    mode: `strict` or `auto`.

  Raises:
    ValueError: `mode` is neither. No text raises.
  """
  if mode not in PARSE_MODES:
    raise ValueError(f"parse mode {mode!r}; expected one of {', '.join(PARSE_MODES)}")
  if len(text) > MAX_CHARS:
    return ParseResult(error="too_long")
  stripped = text.strip()
  if not stripped:
    return ParseResult(error="empty")
  return _parse_strict(stripped)


_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_CALL_START = re.compile(r"[\[{]|```|<tool_call|<\|python_tag\||\[?[A-Za-z_][\w.]*\(")
_CALL_SIGNS = (_OPEN, _CLOSE, "<|python_tag|>", '{"name"', '[{"')


def looks_like_call(text: str) -> bool:
  """Whether a text that holds no accepted call was still meant as one, or quotes one."""
  if _CALL_START.match(text):
    return True
  if any(sign in text for sign in _CALL_SIGNS):
    return True
  return '"name"' in text and ('"arguments"' in text or '"parameters"' in text)


def read_call(value: Any) -> ToolCall | None:
  """Reads `{"name": text, "arguments": object}` with exactly these keys, or returns None."""
  if not isinstance(value, dict) or len(value) != 2:
    return None
  name, arguments = value.get("name"), value.get("arguments")
  if not isinstance(name, str) or not name or not isinstance(arguments, dict):
    return None
  return ToolCall(name, arguments)


def _parse_strict(text: str) -> ParseResult:
  if text.startswith("["):
    return _parse_list(text)
  if text.startswith(_OPEN):
    return _parse_blocks(text)
  if not looks_like_call(text):
    return ParseResult(error="text")
  if text.startswith("{"):
    decoded = decode_at(text)
    return ParseResult(error=decoded.error or "other_form")
  if "```" in text[:3] or ("(" in text and not any(sign in text for sign in _CALL_SIGNS)):
    return ParseResult(error="other_form")
  return ParseResult(error="surrounding_text")


def _parse_list(text: str) -> ParseResult:
  value, end, error = decode_at(text)
  if error:
    return ParseResult(error=error)
  if text[end:].strip(WHITESPACE):
    return ParseResult(error="surrounding_text")
  if not value:
    return ParseResult(error="empty_list")
  return _result(value, "list")


def _parse_blocks(text: str) -> ParseResult:
  values: list[Any] = []
  position = 0
  while position < len(text):
    if not text.startswith(_OPEN, position):
      return ParseResult(error="surrounding_text")
    value, end, error = decode_at(text, position + len(_OPEN))
    if error:
      return ParseResult(error=error)
    close = _skip_whitespace(text, end)
    if not text.startswith(_CLOSE, close):
      return ParseResult(error="bad_json")
    values.append(value)
    if len(values) > MAX_CALLS:
      return ParseResult(error="too_many_calls")
    position = _skip_whitespace(text, close + len(_CLOSE))
  return _result(values, "blocks")


def _result(values: list[Any], form: str) -> ParseResult:
  if len(values) > MAX_CALLS:
    return ParseResult(error="too_many_calls")
  calls = tuple(call for value in values if (call := read_call(value)) is not None)
  if len(calls) != len(values):
    return ParseResult(error="not_a_call")
  return ParseResult(calls=calls, form=form)


def _skip_whitespace(text: str, position: int) -> int:
  while position < len(text) and text[position] in WHITESPACE:
    position += 1
  return position
