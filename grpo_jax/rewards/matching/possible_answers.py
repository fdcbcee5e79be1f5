"""Accepted values with the form and meaning of the Berkeley Function Calling Leaderboard (BFCL).

The rules are those of its AST checker for Python (bfcl_eval 2026.3.23, Apache-2.0), written anew.
They are looser than `values.equal_values` in some ways (text without case, spaces and most
punctuation) and stricter in others (an integer where a text is expected is wrong even if the text
would match). `docs/rewards.md` lists where we differ on purpose.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_TYPES: Mapping[str, type] = {
  "string": str,
  "any": str,
  "integer": int,
  "float": float,
  "number": float,
  "boolean": bool,
  "array": list,
  "tuple": list,
  "dict": dict,
  "object": dict,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")


def is_accepted(value: Any, accepted: Sequence[Any], schema: Any) -> bool:
  """Whether a value is among the accepted ones.

  Args:
    value: the value in the completion.
    accepted: the accepted values; `""` means that the argument may be left out.
    schema: the argument's schema; its `type` may be JSON schema's or the leaderboard's (`dict`,
      `float`, `tuple`, `any`).
  """
  schema = schema if isinstance(schema, Mapping) else {}
  kind = schema.get("type")
  expected = _TYPES.get(kind) if isinstance(kind, str) else None
  if expected is float and type(value) is int:
    value = float(value)
  accepted_type = _type_of(accepted)
  if type(value) is not expected:
    # The ground truth may hold another type than the schema says (a variable's name, None).
    return type(value) is accepted_type and _member(value, accepted)
  items = _items_type(schema) if expected is list else None
  if items is not None and not _items_typed(value, accepted, items):
    return False
  if accepted_type is not None and accepted_type is not expected:
    return _member(value, accepted)
  return _matches(value, accepted, expected, items)


def _matches(
  value: Any, accepted: Sequence[Any], expected: type | None, items: type | None
) -> bool:
  """Compares a value that has the expected type."""
  if expected is dict:
    return _is_accepted_dict(value, accepted)
  if expected is list and items is dict:
    return _is_accepted_list_of_dicts(value, accepted)
  if expected is list:
    folded = [_folded(item) for item in value]
    return any(folded == [_folded(item) for item in _as_list(option)] for option in accepted)
  return _member(_folded(value), [_folded(option) for option in accepted])


def may_be_left_out(accepted: Any) -> bool:
  """Whether `""` is among the accepted values."""
  return isinstance(accepted, Sequence) and any(_is_blank(option) for option in accepted)


def _is_blank(option: Any) -> bool:
  return isinstance(option, str) and option == ""


def _type_of(accepted: Sequence[Any]) -> type | None:
  return next((type(option) for option in accepted if not _is_blank(option)), None)


def _folded(value: Any) -> Any:
  return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def _member(value: Any, options: Sequence[Any]) -> bool:
  # Python's own equality, as the leaderboard has it: 7 is among [7.0].
  return any(value == option for option in options)


def _as_list(option: Any) -> Sequence[Any]:
  # An empty list stands for an argument that may be left out; any other text is no list.
  if _is_blank(option):
    return []
  return option if isinstance(option, (list, tuple)) else [object()]


def _items_type(schema: Mapping[str, Any]) -> type | None:
  items = schema.get("items")
  kind = items.get("type") if isinstance(items, Mapping) else None
  return _TYPES.get(kind) if isinstance(kind, str) else None


def _items_typed(value: Any, accepted: Sequence[Any], items: type) -> bool:
  """Whether, for one accepted value, every item has the schema's type or that value's own."""
  for option in accepted:
    if not isinstance(option, (list, tuple)):
      return True
    if all(type(item) is items or type(item) is _type_of(option) for item in value):
      return True
  return False


def _is_accepted_dict(value: Mapping[str, Any], accepted: Sequence[Any]) -> bool:
  return any(_matches_dict(value, option) for option in accepted if isinstance(option, Mapping))


def _matches_dict(value: Any, option: Mapping[str, Any]) -> bool:
  """`option` maps each key to its accepted values."""
  if not isinstance(value, Mapping):
    return False
  for key, inner in value.items():
    accepted = option.get(key)
    if not isinstance(accepted, (list, tuple)):
      return False
    if not _member(_folded(inner), [_folded(entry) for entry in accepted]):
      return False
  return all(key in value or may_be_left_out(entries) for key, entries in option.items())


def _is_accepted_list_of_dicts(value: Sequence[Any], accepted: Sequence[Any]) -> bool:
  for option in accepted:
    wanted = _as_list(option)
    if len(value) == len(wanted) and all(
      isinstance(other, Mapping) and _matches_dict(one, other)
      for one, other in zip(value, wanted, strict=True)
    ):
      return True
  return False
