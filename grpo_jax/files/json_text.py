"""JSON with bounds: what Python's decoder would take but neither a reward nor a task may."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

MAX_DEPTH = 32  # of a completion
MAX_DATA_DEPTH = 100  # later steps recurse in Python; no schema comes near it
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
    end: the position just after the value; its start where the end cannot be told.
    error: None, `bad_json`, `duplicate_key`, `not_finite`, `huge_number`, `lone_surrogate` or
      `too_deep`.
    problem: the error in words, for people; empty when there is none.
  """

  value: Any
  end: int
  error: str | None
  problem: str = ""


class _Refused(ValueError):
  """Carries an error code out of the decoder's hooks, and what it means here."""

  def __init__(self, code: str, problem: str) -> None:
    super().__init__(problem)
    self.code = code


def decode_at(text: str, start: int = 0, max_depth: int = MAX_DEPTH) -> Decoded:
  """Reads the JSON value at `start` (after white space), in time linear in the text's length.

  Repeated keys, NaN and infinities, numbers of more than `MAX_DIGITS` digits, lone surrogates and
  nesting deeper than `max_depth` are errors: each could mean two things, or stop a later step.
  Never raises.
  """
  start = skip_whitespace(text, start)
  too_deep = Decoded(None, start, "too_deep", f"nested deeper than {max_depth}")
  try:
    value, end = _DECODER.raw_decode(text, start)
  except _Refused as refused:
    return Decoded(None, start, refused.code, str(refused))
  except (ValueError, RecursionError) as error:
    # Where Python's own limit lies depends on its stack, so ours decides which of the two it is.
    if _too_deep(text, start, len(text), max_depth):
      return too_deep
    return Decoded(None, start, "bad_json", _not_json(error))
  if _too_deep(text, start, end, max_depth):
    return too_deep._replace(end=end)
  if not _encodable(value, text[start:end]):
    return Decoded(None, end, "lone_surrogate", _LONE_SURROGATE)
  return Decoded(value, end, None)


def decode(text: str) -> Decoded:
  """Reads a text of data that is one JSON value as a whole; see `decode_at`. Never raises."""
  found = decode_at(text, 0, MAX_DATA_DEPTH)
  if found.error is None and (end := skip_whitespace(text, found.end)) < len(text):
    return Decoded(None, end, "bad_json", _not_json(json.JSONDecodeError("Extra data", text, end)))
  return found


def read_json(text: str) -> Any:
  """The one JSON value that a text is.

  Raises:
    ValueError: there is none; see `decode_at`.
  """
  found = decode(text)
  if found.error is not None:
    raise ValueError(found.problem)
  return found.value


def decoded(value: Any, name: str) -> Any:
  """JSON text as its value; anything else, and text that is not JSON, as it is.

  Args:
    value: of a field that may hold JSON text, as columns of tables often do.
    name: of the field, for messages.

  Raises:
    ValueError: the text is JSON that could mean two things, or stop a later step.
  """
  if not isinstance(value, str):
    return value
  found = decode(value)
  if found.error not in (None, "bad_json"):
    raise ValueError(f'"{name}" is JSON text that cannot be read: {found.problem}')
  return value if found.error else found.value


def skip_whitespace(text: str, start: int) -> int:
  """The position of the first character at or after `start` that is not JSON white space."""
  match = _SKIP_WHITESPACE.match(text, start)
  return match.end() if match else start


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  if len(value) != len(pairs):
    seen: set[str] = set()
    for key, _ in pairs:
      if key in seen:
        raise _Refused("duplicate_key", f"the key {key[:100]!r} stands twice in one object")
      seen.add(key)
  return value


def _integer(digits: str) -> int:
  if len(digits) > MAX_DIGITS:
    raise _Refused("huge_number", _HUGE_NUMBER)
  return int(digits)


def _float(digits: str) -> float:
  if len(digits) > MAX_DIGITS:
    raise _Refused("huge_number", _HUGE_NUMBER)
  value = float(digits)
  if value in (float("inf"), float("-inf")):
    raise _Refused("huge_number", _HUGE_NUMBER)
  return value


def _constant(name: str) -> float:
  raise _Refused("not_finite", f"{name} is no JSON number")


_HUGE_NUMBER = f"a number of more than {MAX_DIGITS} digits, or beyond a float's range"
_LONE_SURROGATE = "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
_DECODER = json.JSONDecoder(
  object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _not_json(error: Exception) -> str:
  if isinstance(error, json.JSONDecodeError):
    return f"not JSON: {error.msg} at column {error.colno}"
  return "not JSON"


def _too_deep(text: str, start: int, end: int, max_depth: int) -> bool:
  # The cheap count settles nearly every text; only a suspicious one is scanned.
  if text.count("[", start, end) + text.count("{", start, end) <= max_depth:
    return False
  depth = 0
  for match in _BRACKET.finditer(text, start, end):
    first = text[match.start()]
    if first in "[{":
      depth += 1
      if depth > max_depth:
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
