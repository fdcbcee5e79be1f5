"""JSON with bounds: what Python's decoder would take but neither a reward nor a task may."""

import functools
import json
import math
import re
from collections import Counter
from typing import Any

MAX_DEPTH = 32  # of a completion
MAX_DATA_DEPTH = 100  # later steps recurse in Python; no schema comes near it
MAX_DIGITS = 64
#: JSON's own white space (str.strip() would take more).
WHITESPACE = " \t\n\r"

_SKIP_WHITESPACE = re.compile(r"[ \t\n\r]*")
# The closing quote is optional: a string that never ends must be consumed once, not once a quote.
_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class Refused(ValueError):
  """A text that is not read, and why: for people as its message, for programs as a code.

  Attributes:
    code: `bad_json`, `duplicate_key`, `not_finite`, `huge_number`, `lone_surrogate`, `too_deep`, or
      a parser's own.
    end: the position just after a JSON value; its start where the end cannot be told.
  """

  def __init__(self, code: str, problem: str = "", end: int = 0) -> None:
    super().__init__(problem or code)
    self.code = code
    self.end = end


def decode_at(text: str, start: int = 0, max_depth: int = MAX_DEPTH) -> tuple[Any, int]:
  """Reads the JSON value at `start` (after white space), in time linear in the text's length.

  Returns:
    The value, and the position just after it.

  Raises:
    Refused: there is none, or one with repeated keys, NaN or infinities, numbers of more than
      `MAX_DIGITS` digits, lone surrogates or nesting deeper than `max_depth`: each could mean two
      things, or stop a later step.
  """
  start = skip_whitespace(text, start)
  try:
    value, end = _DECODER.raw_decode(text, start)
  except Refused as refused:
    refused.end = start
    raise
  except (ValueError, RecursionError) as error:
    # Where Python's own limit lies depends on its stack, so ours decides which of the two it is.
    _check_depth(text, start, len(text), max_depth, start)
    raise Refused("bad_json", _not_json(error), start) from None
  _check_depth(text, start, end, max_depth, end)
  if not _encodable(value, text[start:end]):
    problem = "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
    raise Refused("lone_surrogate", problem, end)
  return value, end


def read_json(text: str) -> Any:
  """The one JSON value that a text of data is.

  Raises:
    Refused: there is none; see `decode_at`.
  """
  value, end = decode_at(text, 0, MAX_DATA_DEPTH)
  if (end := skip_whitespace(text, end)) < len(text):
    raise Refused("bad_json", _not_json(json.JSONDecodeError("Extra data", text, end)), end)
  return value


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
  try:
    return read_json(value)
  except Refused as refused:
    if refused.code == "bad_json":
      return value
    raise ValueError(f'"{name}" is JSON text that cannot be read: {refused}') from None


def skip_whitespace(text: str, start: int) -> int:
  """The position of the first character at or after `start` that is not JSON white space."""
  match = _SKIP_WHITESPACE.match(text, start)
  return match.end() if match else start


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  if len(value) != len(pairs):
    (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
    raise Refused("duplicate_key", f"the key {key[:100]!r} stands twice in one object")
  return value


def _number(kind: type, digits: str) -> Any:
  value = kind(digits) if len(digits) <= MAX_DIGITS else math.inf
  if math.isinf(value):
    problem = f"a number of more than {MAX_DIGITS} digits, or beyond a float's range"
    raise Refused("huge_number", problem)
  return value


def _constant(name: str) -> float:
  raise Refused("not_finite", f"{name} is no JSON number")


_DECODER = json.JSONDecoder(
  object_pairs_hook=_object,
  parse_int=functools.partial(_number, int),
  parse_float=functools.partial(_number, float),
  parse_constant=_constant,
)


def _not_json(error: Exception) -> str:
  if isinstance(error, json.JSONDecodeError):
    return f"not JSON: {error.msg} at column {error.colno}"
  return "not JSON"


def _check_depth(text: str, start: int, stop: int, max_depth: int, end: int) -> None:
  """Refuses, with `end`, what stands between start and stop and is nested too deep."""
  # The cheap count settles nearly every text; only a suspicious one is scanned.
  if text.count("[", start, stop) + text.count("{", start, stop) <= max_depth:
    return
  depth = 0
  for match in _BRACKET.finditer(text, start, stop):
    first = text[match.start()]
    depth += (first in "[{") - (first in "]}")
    if depth > max_depth:
      raise Refused("too_deep", f"nested deeper than {max_depth}", end)
    if depth <= 0 and first in "]}":
      return


def _encodable(value: Any, source: str) -> bool:
  if source.isascii() and "\\u" not in source:
    return True
  try:
    json.dumps(value, ensure_ascii=False).encode("utf-8")
  except UnicodeEncodeError:
    return False
  return True
