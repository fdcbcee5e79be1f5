"""Text to calls. Never raises, never evaluates; linear time, bounded depth and size."""

from __future__ import annotations

from typing import Any, Literal, get_args

from grpo_jax.files.json_text import WHITESPACE, decode_at, skip_whitespace
from grpo_jax.rewards.parsing.auto_parser import parse_auto
from grpo_jax.rewards.parsing.parsed import (
  CLOSE_TAG,
  MAX_CALLS,
  MAX_CHARS,
  OPEN_TAG,
  ParseResult,
  has_call_sign,
  looks_like_call,
  read_call,
)

ParseMode = Literal["strict", "auto"]
PARSE_MODES: tuple[ParseMode, ...] = get_args(ParseMode)


def parse(text: str, mode: ParseMode = "strict") -> ParseResult:
  """Reads the calls that a completion makes.

  `strict` takes exactly two forms with nothing but white space around them:
  `[{"name": ..., "arguments": {...}}, ...]`, and one or more of Qwen's
  `<tool_call>{...}</tool_call>` blocks. `auto` also takes what `parse_auto` knows.

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
  result = _parse_strict(stripped)
  if mode == "auto" and result.error in _OTHER_READINGS:
    return parse_auto(stripped, result)
  return result


# Errors after which another reading of the same text may succeed. The rest (a repeated key, NaN)
# mean that the call was understood and refused.
_OTHER_READINGS = frozenset(
  ("text", "bad_json", "not_a_call", "surrounding_text", "other_form", "too_deep")
)


def _parse_strict(text: str) -> ParseResult:
  if text.startswith("["):
    return _parse_list(text)
  if text.startswith(OPEN_TAG):
    return _parse_blocks(text)
  if not looks_like_call(text):
    return ParseResult(error="text")
  if text.startswith("{"):
    return ParseResult(error=decode_at(text).error or "other_form")
  if has_call_sign(text) and not text.startswith("```"):
    return ParseResult(error="surrounding_text")
  return ParseResult(error="other_form")


def _parse_list(text: str) -> ParseResult:
  value, end, error, _ = decode_at(text)
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
    if not text.startswith(OPEN_TAG, position):
      return ParseResult(error="surrounding_text")
    value, end, error, _ = decode_at(text, position + len(OPEN_TAG))
    if error:
      return ParseResult(error=error)
    close = skip_whitespace(text, end)
    if not text.startswith(CLOSE_TAG, close):
      return ParseResult(error="bad_json")
    values.append(value)
    if len(values) > MAX_CALLS:
      return ParseResult(error="too_many_calls")
    position = skip_whitespace(text, close + len(CLOSE_TAG))
  return _result(values, "blocks")


def _result(values: list[Any], form: str) -> ParseResult:
  if len(values) > MAX_CALLS:
    return ParseResult(error="too_many_calls")
  calls = tuple(call for value in values if (call := read_call(value)) is not None)
  if len(calls) != len(values):
    return ParseResult(error="not_a_call")
  return ParseResult(calls=calls, form=form)
