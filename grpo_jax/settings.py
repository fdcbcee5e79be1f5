"""Settings as frozen dataclasses: what a field says of itself is its flag, its check, its record.

A field made with `setting` carries its help, unit, bounds and choices. Everything else follows from
the fields: `settings_of` lists them by the names of their flags, `build` makes the dataclasses from
values by those names, a value out of bounds is refused when the dataclass is made, and
`from_record` reads back what `dataclasses.asdict` wrote down, now or in an earlier version.
"""

import dataclasses
import json
import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args, get_origin

REQUIRED = dataclasses.MISSING  # as a default: there is none


def setting(default: Any, help: str, *, repr: bool = True, **about: Any) -> Any:
  """A dataclass field that documents and checks itself.

  Args:
    default: of the field and of its flag, or a function that makes it; `REQUIRED` for none.
    help: what it decides.
    repr: False keeps a secret out of tracebacks.
    about: bounds and so on, see `Setting`.
  """
  how: dict[str, Any] = {"default_factory" if callable(default) else "default": default}
  return dataclasses.field(**how, repr=repr, metadata={"setting": Setting(help, **about)})


@dataclass(frozen=True)
class Setting:
  """What a field says of its value; the annotation says the rest.

  Attributes:
    help: what it decides, in a sentence's beginning.
    unit: of a number, such as `tokens`.
    low: the least value.
    high: the greatest.
    above: what the value must exceed.
    below: what must exceed the value.
    choices: the values of a text; those of a `Literal` follow from the annotation.
    name: of the flag, where it is not the field's.
    same_as: the flag whose value this field takes, too; it then has none of its own.
    needs: the field beside it that must be above 0 for this one to be set at all.
    flag: False for what no user sets: the program fills it in, or only code can give it.
    free: may differ between the parts of one run, since no number of it depends on it.
    path: the names of the fields that lead to it.
    type: bool, int, float, str or dict; `tuple` for a pair that is written NAME=FILE.
    optional: whether None is a value.
    many: whether the value is a tuple of such values.
    default: `REQUIRED` where there is none.
  """

  help: str
  unit: str = ""
  low: float | None = None
  high: float | None = None
  above: float | None = None
  below: float | None = None
  choices: tuple[str, ...] = ()
  name: str = ""
  same_as: str = ""
  needs: str = ""
  flag: bool = True
  free: bool = False
  path: tuple[str, ...] = ()
  type: Any = str
  optional: bool = False
  many: bool = False
  default: Any = None

  @property
  def bounds(self) -> str:
    """The bounds in words, such as `above 0 and at most 1`; empty for none."""
    sides = {"above": self.above, "at least": self.low, "below": self.below, "at most": self.high}
    return " and ".join(f"{words} {bound:g}" for words, bound in sides.items() if bound is not None)

  @property
  def description(self) -> str:
    """The help with unit and bounds, for a flag."""
    more = "; ".join(filter(None, (self.unit, self.bounds)))
    return f"{self.help} ({more})" if more else self.help

  def check(self, value: Any) -> None:
    """Refuses a value that is not of the type, within the bounds or among the choices.

    Raises:
      ValueError: one sentence that begins with the flag and its value.
    """
    if value is None and self.optional:
      return
    for one in value if self.many else (value,):
      if wanted := self._violated(one):
        raise ValueError(f"{self.label(value)} must be {wanted}")

  def read(self, text: str) -> Any:
    """The value that a text spells; of a field of several values, one of them.

    Raises:
      ValueError: the text does not spell one.
    """
    readers: dict[Any, Any] = {bool: {"true": True, "false": False}.__getitem__, tuple: _pair}
    try:
      return readers.get(self.type, self.type)(text.strip())
    except (KeyError, ValueError):
      raise ValueError(f"--{self.name}={text} must be {_WANTED[self.type]}") from None

  def label(self, value: Any) -> str:
    """The setting and a value of it as messages name them: `--steps=0`."""
    return f"{'--' if self.flag else ''}{self.name}={self.text(value)}"

  def text(self, value: Any) -> str:
    """A value as the command line takes it."""
    if not isinstance(value, tuple):
      return str(value)
    pair = self.type is tuple and all(isinstance(part, str) for part in value)
    return ("=" if pair else ",").join(map(self.text, value))

  def _violated(self, value: Any) -> str:
    """What the value must be and is not, in words."""
    kinds = {int: numbers.Integral, float: numbers.Real, dict: Mapping}
    if not isinstance(value, kinds.get(self.type, self.type)) or (
      isinstance(value, bool) and self.type is not bool
    ):
      return _WANTED[self.type]
    if self.choices and value not in self.choices:
      return f"one of {', '.join(self.choices)}"
    if self.type is float and not math.isfinite(value):
      return f"a finite number {self.bounds}".rstrip()
    within = (
      (self.low is None or value >= self.low)
      and (self.high is None or value <= self.high)
      and (self.above is None or value > self.above)
      and (self.below is None or value < self.below)
    )
    return "" if within else self.bounds


_WANTED: Mapping[Any, str] = {
  bool: "true or false", int: "a whole number", float: "a finite number", str: "a text",
  tuple: "NAME=FILE", dict: "a mapping",
}  # fmt: skip


def _pair(text: str) -> tuple[str, str]:
  name, _, value = text.partition("=")
  if not value:
    raise ValueError(text)
  return name, value


@dataclass(frozen=True)
class Settings:
  """The base of all dataclasses of settings: making one checks every value by its field."""

  def __post_init__(self) -> None:
    for found in _own_settings(type(self)):
      value = getattr(self, found.path[-1])
      found.check(value)
      if found.needs and not getattr(self, found.needs) and value != found.default:
        raise ValueError(f"{found.label(value)} needs a --{found.needs} above 0")


S = TypeVar("S", bound=Settings)


def settings_of(kind: type[Settings]) -> dict[str, Setting]:
  """The settings that have a flag, those of nested dataclasses too, by the flag's name.

  Raises:
    TypeError: two fields have the same flag.
  """
  flags = [one for one in _every_setting(kind) if one.flag]
  found = {one.name: one for one in flags}
  if len(found) < len(flags):
    raise TypeError(f"two fields of {kind.__name__} have one flag: mark one with same_as")
  return found


def build(kind: type[S], values: Mapping[str, Any]) -> S:
  """Makes the dataclass, and those in it, from values by the names of their flags.

  A nested dataclass that may be None is one where what it requires is among the values.

  Raises:
    ValueError: a value that its field refuses, or a name that no field has.
  """
  if unknown := set(values) - {one.name for one in _every_setting(kind)}:
    raise ValueError(f"there is no setting {', '.join(sorted(unknown))}")
  return _built(kind, values)


def _built(kind: type[S], values: Mapping[str, Any]) -> S:
  own, given = _own_settings(kind), {}
  for one in own:
    if one.name in values and (values[one.name] is not None or one.optional):
      given[one.path[-1]] = values[one.name]
  for name, (inner, optional) in _nested(kind).items():
    required = [one.name for one in _own_settings(inner) if one.default is REQUIRED]
    if not optional or all(map(values.get, required)):
      given[name] = _built(inner, values)
  return kind(**given)


def from_record(kind: type[S], record: Mapping[str, Any]) -> S:
  """Makes the dataclass from what `dataclasses.asdict` made of one, by way of JSON.

  A key that is missing means the default, and one that is not known is left out: records of
  earlier and later versions are read.

  Raises:
    ValueError: a value that its field refuses, or one that is required and missing.
  """
  given, nested = {}, _nested(kind)
  for name in (field.name for field in fields(kind) if field.name in record):
    inside = name in nested and isinstance(record[name], Mapping)
    given[name] = from_record(nested[name][0], record[name]) if inside else _frozen(record[name])
  try:
    return kind(**given)
  except TypeError as error:  # a required argument is missing
    raise ValueError(str(error)) from error


def _frozen(value: Any) -> Any:
  return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def differences(
  kind: type[Settings], old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, bool, Any, Any]]:
  """Where two records of a kind differ, a missing key standing for the default.

  Yields:
    The flag's (or field's) name, whether it is free to differ, and both values as JSON has them.
  """
  nested = _nested(kind)
  for field in fields(kind):
    then, now = (_recorded(field, record) for record in (old, new))
    if field.name in nested and isinstance(then, Mapping) and isinstance(now, Mapping):
      yield from differences(nested[field.name][0], then, now)
    elif then != now:
      about = field.metadata.get("setting", Setting(""))
      yield about.name or about.same_as or field.name, about.free, then, now


def _recorded(field: dataclasses.Field, record: Mapping[str, Any]) -> Any:
  value = record.get(field.name, _default(field))
  return json.loads(json.dumps(value, default=vars))  # nested settings are mappings there


def _default(field: dataclasses.Field) -> Any:
  return field.default if field.default_factory is REQUIRED else field.default_factory()


def _every_setting(kind: type[Settings]) -> Iterator[Setting]:
  own, nested = {one.path[0]: one for one in _own_settings(kind)}, _nested(kind)
  for name in (field.name for field in fields(kind)):
    if name in own:
      yield own[name]
    else:
      for inner in _every_setting(nested[name][0]):
        yield dataclasses.replace(inner, path=(name, *inner.path))


def _own_settings(kind: type[Settings]) -> list[Setting]:
  """The settings of a dataclass itself, without those of nested ones."""
  hints, nested, found = typing.get_type_hints(kind), _nested(kind), []
  for field in fields(kind):
    if field.name in nested:
      continue
    if "setting" not in field.metadata:
      raise TypeError(f"{kind.__name__}.{field.name} is no setting: make the field with `setting`")
    about: Setting = field.metadata["setting"]
    annotation, optional = _without_none(hints[field.name])
    many = get_origin(annotation) is tuple
    annotation = get_args(annotation)[0] if many else annotation
    if choices := get_args(annotation) if get_origin(annotation) is Literal else about.choices:
      annotation = str
    found.append(
      dataclasses.replace(
        about,
        name=about.name or about.same_as or field.name,
        flag=about.flag and not about.same_as,
        choices=choices,
        path=(field.name,),
        type={Mapping: dict}.get(get_origin(annotation), get_origin(annotation) or annotation),
        optional=optional,
        many=many,
        default=_default(field),
      )
    )
  return found


def _nested(kind: type[Settings]) -> dict[str, tuple[type[Settings], bool]]:
  """The dataclasses of settings in one, by field, and whether they may be None."""
  kinds = {name: _without_none(hint) for name, hint in typing.get_type_hints(kind).items()}
  is_nested = lambda found: isinstance(found, type) and issubclass(found, Settings)
  return {name: found for name, found in kinds.items() if is_nested(found[0])}


def _without_none(annotation: Any) -> tuple[Any, bool]:
  """An annotation without its `| None`, and whether it had one."""
  if get_origin(annotation) not in (types.UnionType, typing.Union):
    return annotation, False
  return next(part for part in get_args(annotation) if part is not type(None)), True
