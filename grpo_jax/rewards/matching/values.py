"""Whether two argument values are the same, as the tool's JSON schema sees them."""

import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from grpo_jax.tasks.schema import resolve


def equal_values(
  given: Any,
  wanted: Any,
  schema: Any = None,
  root: Any = None,
  depth: int = 64,
  known: dict[tuple[int, int, int], bool] | None = None,
) -> bool:
  """Compares two JSON values by type and value.

  - Booleans are never numbers, and numbers are never text.
  - 5 equals 5.0 unless the schema says `integer`: then both must be written as integers.
  - Text is compared exactly (case included) after NFC normalization and stripping outer white
    space; with `format: date-time`, two spellings of one instant are equal.
  - Arrays are ordered. Objects need the same keys; a key left out equals its schema's `default`.
  - With `anyOf` or `oneOf`, one alternative that takes the wanted value's type, and under which
    they are equal, is enough; if none takes it, they do not count.

  Args:
    given: the value in the completion.
    wanted: the value in the ground truth.
    schema: the argument's JSON schema; anything that is not a mapping means "any value".
    root: the schema that `$ref: "#/..."` refers to.
    depth: levels still compared; deeper values are unequal.
    known: what alternatives have settled so far, by the identities of both values and the schema.
  """
  if depth <= 0:
    return False
  schema = resolve(schema, root)
  options = _alternatives(schema, root, wanted)
  if options:
    # Each pair is settled once: nested alternatives would else take time exponential in the depth.
    known = {} if known is None else known
    pair = (id(given), id(wanted), id(schema))
    if pair not in known:
      known[pair] = False  # what a schema that refers to itself finds on its way round
      # Whatever the schema makes of it (too many alternatives, or itself), a value equals itself.
      known[pair] = any(
        equal_values(given, wanted, option, root, depth - 1, known) for option in options[:_WIDTH]
      ) or _identical(given, wanted)
    return known[pair]
  if isinstance(given, bool) or isinstance(wanted, bool):
    return isinstance(given, bool) and isinstance(wanted, bool) and given == wanted
  if isinstance(given, (int, float)) and isinstance(wanted, (int, float)):
    if _only_integers(schema) and isinstance(wanted, int) and not isinstance(given, int):
      return False
    return given == wanted
  if isinstance(given, str) and isinstance(wanted, str):
    return _equal_text(given, wanted, schema)
  if isinstance(given, (list, tuple)) and isinstance(wanted, (list, tuple)):
    return len(given) == len(wanted) and all(
      equal_values(one, other, schema.get("items"), root, depth - 1, known)
      for one, other in zip(given, wanted, strict=True)
    )
  if isinstance(given, Mapping) and isinstance(wanted, Mapping):
    return _equal_objects(given, wanted, schema, root, depth, known)
  return given is None and wanted is None


_WIDTH = 16
#: No character decomposes into more, so no text is equal to one that is more times shorter.
_MAX_DECOMPOSED = 4
_MISSING = object()
_TYPE_NAMES = {
  bool: ("boolean",),
  int: ("integer", "number", "float"),
  float: ("number", "float"),
  str: ("string", "any"),
  list: ("array", "tuple"),
  dict: ("object", "dict"),
  type(None): ("null",),
}


def default_of(schema: Any, root: Any = None) -> Any:
  """The schema's `default`, or a value that equals nothing."""
  return resolve(schema, root).get("default", _MISSING)


def _alternatives(schema: Mapping[str, Any], root: Any, wanted: Any) -> list[Any]:
  """The alternatives of `anyOf` or `oneOf` that take the wanted value's type."""
  options = schema.get("anyOf") or schema.get("oneOf")
  if not isinstance(options, (list, tuple)):
    return []
  return [option for option in options if _takes(resolve(option, root), wanted)]


def _identical(given: Any, wanted: Any) -> bool:
  """Whether two JSON values are the same, with the same types, without a look at any schema."""
  if type(given) is not type(wanted):
    return False
  if isinstance(wanted, Mapping):
    return given.keys() == wanted.keys() and all(
      _identical(given[name], wanted[name]) for name in wanted
    )
  if isinstance(wanted, (list, tuple)):
    return len(given) == len(wanted) and all(map(_identical, given, wanted))
  return bool(given == wanted)


def _kinds(schema: Mapping[str, Any]) -> Sequence[Any]:
  """The types that a schema allows; empty where it does not say."""
  kind = schema.get("type")
  return kind if isinstance(kind, (list, tuple)) else () if kind is None else (kind,)


def _takes(schema: Mapping[str, Any], value: Any) -> bool:
  kinds = _kinds(schema)
  return not kinds or any(name in kinds for name in _TYPE_NAMES.get(type(value), ()))


def _only_integers(schema: Mapping[str, Any]) -> bool:
  kinds = _kinds(schema)
  return "integer" in kinds and "number" not in kinds


def _equal_text(given: str, wanted: str, schema: Mapping[str, Any]) -> bool:
  if given == wanted:
    return True
  if schema.get("format") == "date-time":
    return _instant(given) == _instant(wanted)
  given, wanted = given.strip(), wanted.strip()
  if given.isascii() and wanted.isascii():
    return given == wanted
  # Normalizing is quadratic in a run of combining marks, and the completion chooses its own length.
  if len(given) > _MAX_DECOMPOSED * len(wanted):
    return False
  return unicodedata.normalize("NFC", given) == unicodedata.normalize("NFC", wanted)


def _instant(text: str) -> datetime | str:
  try:
    return datetime.fromisoformat(text.strip())
  except ValueError:
    return text.strip()


def _equal_objects(
  given: Mapping[str, Any],
  wanted: Mapping[str, Any],
  schema: Mapping[str, Any],
  root: Any,
  depth: int,
  known: dict[tuple[int, int, int], bool] | None,
) -> bool:
  properties = schema.get("properties")
  properties = properties if isinstance(properties, Mapping) else {}
  for name in given.keys() | wanted.keys():
    inner = properties.get(name, schema.get("additionalProperties"))
    default = default_of(inner, root)
    one, other = given.get(name, default), wanted.get(name, default)
    if not equal_values(one, other, inner, root, depth - 1, known):
      return False
  return True
