"""Text to calls. Never raises, never evaluates; linear time, bounded depth and size."""

from typing import Any, Literal, get_args

from grpo_jax.files.json_text import WHITESPACE, Refused, decode_at, skip_whitespace
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
  stripped = text.strip()
  try:
    if len(text) > MAX_CHARS:
      raise Refused("too_long")
    if not stripped:
      raise Refused("empty")
    return _parse_strict(stripped)
  except Refused as refused:
    strict = ParseResult(error=refused.code)
  if mode == "strict" or strict.error not in _OTHER_READINGS:
    return strict
  try:
    return parse_auto(stripped) or strict
  except Refused as refused:
    return ParseResult(error=refused.code)


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
    raise Refused("text")
  if text.startswith("{"):
    decode_at(text)
    raise Refused("other_form")
  quoted = has_call_sign(text) and not text.startswith("```")
  raise Refused("surrounding_text" if quoted else "other_form")


def _parse_list(text: str) -> ParseResult:
  values, end = decode_at(text)
  if text[end:].strip(WHITESPACE):
    raise Refused("surrounding_text")
  if not values:
    raise Refused("empty_list")
  return _result(values, "list")


def _parse_blocks(text: str) -> ParseResult:
  values: list[Any] = []
  position = 0
  while position < len(text):
    if not text.startswith(OPEN_TAG, position):
      raise Refused("surrounding_text")
    value, end = decode_at(text, position + len(OPEN_TAG))
    close = skip_whitespace(text, end)
    if not text.startswith(CLOSE_TAG, close):
      raise Refused("bad_json")
    values.append(value)
    if len(values) > MAX_CALLS:
      raise Refused("too_many_calls")
    position = skip_whitespace(text, close + len(CLOSE_TAG))
  return _result(values, "blocks")


def _result(values: list[Any], form: str) -> ParseResult:
  if len(values) > MAX_CALLS:
    raise Refused("too_many_calls")
  calls = tuple(call for value in values if (call := read_call(value)) is not None)
  if len(calls) != len(values):
    raise Refused("not_a_call")
  return ParseResult(calls=calls, form=form)
