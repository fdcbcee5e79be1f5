"""JSON with bounds: what Python's decoder would take but a reward must not. Never raises."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

MAX_DEPTH = 32
MAX_DIGITS = 64
#: JSON's own white space (str.strip() would take more).
WHITESPACE = " \t\n\r"

_SKIP_WHITESPACE = re.compile(r"[ \t\n\r]*")
# The closing quote is optional: a string that never ends must be consumed once, not once a quote.
_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class Decoded(NamedTuple):
  """A JSON value that begins at a position, or why there is none.

  Attributes:
    value: the value (None also when there is an error).
    end: the position just after the value.
    error: None, `bad_json`, `duplicate_key`, `not_finite`, `huge_number`, `lone_surrogate` or
      `too_deep`.
  """

  value: Any
  end: int
  error: str | None


class _Refused(ValueError):
  """Carries an error code out of the decoder's hooks."""

  def __init__(self, code: str) -> None:
    super().__init__(code)
    self.code = code


def decode_at(text: str, start: int = 0) -> Decoded:
  """Reads the JSON value at `start` (after white space), in time linear in the text's length.

  Repeated keys, NaN and infinities, numbers of more than `MAX_DIGITS` digits, lone surrogates and
  nesting deeper than `MAX_DEPTH` are errors: each could mean two things, or stop a later step.
  """
  start = skip_whitespace(text, start)
  try:
    value, end = _DECODER.raw_decode(text, start)
  except _Refused as refused:
    return Decoded(None, start, refused.code)
  except (ValueError, RecursionError):
    # Where Python's own limit lies depends on its stack, so ours decides which of the two it is.
    return Decoded(None, start, "too_deep" if _too_deep(text, start, len(text)) else "bad_json")
  if _too_deep(text, start, end):
    return Decoded(None, start, "too_deep")
  if not _encodable(value, text[start:end]):
    return Decoded(None, start, "lone_surrogate")
  return Decoded(value, end, None)


def skip_whitespace(text: str, start: int) -> int:
  """The position of the first character at or after `start` that is not JSON white space."""
  match = _SKIP_WHITESPACE.match(text, start)
  return match.end() if match else start


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  if len(value) != len(pairs):
    raise _Refused("duplicate_key")
  return value


def _integer(digits: str) -> int:
  if len(digits) > MAX_DIGITS:
    raise _Refused("huge_number")
  return int(digits)


def _float(digits: str) -> float:
  if len(digits) > MAX_DIGITS:
    raise _Refused("huge_number")
  value = float(digits)
  if value in (float("inf"), float("-inf")):
    raise _Refused("huge_number")
  return value


def _constant(name: str) -> float:
  raise _Refused("not_finite")


_DECODER = json.JSONDecoder(
  object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _too_deep(text: str, start: int, end: int) -> bool:
  # The cheap count settles nearly every text; only a suspicious one is scanned.
  if text.count("[", start, end) + text.count("{", start, end) <= MAX_DEPTH:
    return False
  depth = 0
  for match in _BRACKET.finditer(text, start, end):
    first = text[match.start()]
    if first in "[{":
      depth += 1
      if depth > MAX_DEPTH:
        return True
    elif first in "]}":
      depth -= 1
      if depth <= 0:
        return False
  return False


def _encodable(value: Any, source: str) -> bool:
  if source.isascii() and "\\u" not in source:
    return True
  try:
    json.dumps(value, ensure_ascii=False).encode("utf-8")
  except UnicodeEncodeError:
    return False
  return True
