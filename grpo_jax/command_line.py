"""Settings as absl flags: defined from their fields, read back into their dataclasses.

Scripts call `define` where they define their own flags, `read` or `checked` in `main`, and put
`script` over it.
"""

import functools
import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from absl import app, flags

from grpo_jax.files.redaction import redacted
from grpo_jax.settings import REQUIRED, Setting, Settings, build, settings_of
from grpo_jax.sweeps.grid import axis_values

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
S = TypeVar("S", bound=Settings)

flags.disclaim_key_flags()  # the flags that are defined here are those of the script that asks
_defined: dict[str, Setting] = {}
_axes: dict[str, Setting] = {}


def define(
  kind: type[Settings],
  only: Collection[str] | None = None,
  *,
  without: Collection[str] = (),
  axes: bool = False,
  **defaults: Any,
) -> None:
  """Defines the flags of a kind of settings.

  Args:
    kind: the dataclass.
    only: the flags to define beside those of `defaults`; None takes all.
    without: flags to leave out.
    axes: the flags take several values of a setting each, for `axes`.
    defaults: by flag, where the script's own default differs from the field's; of axes the texts
      of the values, without which a flag has none unless it is given.
  """
  every = settings_of(kind)
  for name in dict.fromkeys([*defaults, *(every if only is None else only)]):
    if name not in without:
      found = every[name]
      (_axes if axes else _defined)[name] = found
      own = None if axes or found.default is REQUIRED else found.default
      _define_one(found, defaults.get(name, own), axes)


def checked(name: str) -> Any:
  """The value of a flag that `define` defined.

  Raises:
    ValueError: its field refuses it; one sentence.
  """
  found, value = _defined[name], FLAGS[name].value
  if found.many:
    value = tuple(map(found.read, value or ()))
  if value is not None or found.default is not REQUIRED:  # what is required may stay away whole
    found.check(value)
  return value


def read(kind: type[S], **given: Any) -> S:
  """Makes the dataclass from the flags that are defined of it.

  Args:
    kind: the dataclass.
    given: values by flag that take the place of the flags'.

  Raises:
    ValueError: values that do not fit, the fields' defaults for other settings among them.
  """
  ours = settings_of(kind).keys() & _defined.keys() - given.keys()
  return build(kind, {name: checked(name) for name in sorted(ours)} | given)


def check() -> None:
  """Refuses, with one sentence, what a field refuses of any flag that is defined of one."""
  for name in _defined:
    checked(name)


def axes() -> dict[str, list[Any]]:
  """The values of every axis that has any, in the order of their definition.

  Raises:
    ValueError: values that a field refuses, or that are equal.
  """
  return {
    name: axis_values(found, FLAGS[name].value)
    for name, found in _axes.items()
    if FLAGS[name].value is not None
  }


def use(values: Mapping[str, Any], source: str) -> None:
  """Sets flags that were not given.

  Args:
    values: by flag.
    source: what they come from, for messages.

  Raises:
    ValueError: a name that no setting has.
  """
  for name, value in values.items():
    if name not in _defined:
      raise ValueError(f"{source}: there is no setting {name}")
    if not FLAGS[name].present:
      FLAGS[name].value = value


def script(
  *expected: type[Exception],
  resumable: tuple[type[Exception], ...] = (),
  arguments: bool = False,
) -> Callable[[Callable[[list[str]], Any]], Callable[[list[str]], Any]]:
  """Decorates the `main` of a script so that what a person can mend ends it with one sentence.

  Args:
    expected: exceptions beside ValueError and OSError whose message is all there is to say.
    resumable: what ends the script with `os.EX_TEMPFAIL`: the same command goes on from there.
    arguments: the script takes arguments that are no flags. Others refuse them, for
      `--ordered_calls false` would mean true.
  """

  def decorate(main: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
    name = Path(main.__code__.co_filename).stem
    told: tuple[type[Exception], ...] = (ValueError, OSError, *expected)

    @functools.wraps(main)
    def checked_main(argv: list[str]) -> Any:
      if argv[1:] and not arguments:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
      try:
        return main(argv)
      except resumable as error:
        print(f"{name}: {error}; run the same command again to go on", file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)
      except told as error:
        sys.exit(f"{name}: {redacted(str(error))}")

    return checked_main

  return decorate


def _define_one(found: Setting, default: Any, axis: bool) -> None:
  name, about = found.name, found.description
  if found.many or axis:
    texts = None if default is None else [found.text(one) for one in default]
    if found.type is tuple or (axis and found.type is str and not found.choices):
      # What is written there may hold commas.
      flags.DEFINE_multi_string(name, texts, f"{about}; repeatable", flag_values=FLAGS)
    else:
      flags.DEFINE_list(name, texts, f"{about}; separated by commas", flag_values=FLAGS)
  elif found.choices:
    flags.DEFINE_enum(name, default, found.choices, about, flag_values=FLAGS)
  else:
    define_value: Any = {
      bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float,
      str: flags.DEFINE_string,
    }[found.type]  # fmt: skip
    define_value(name, default, about, flag_values=FLAGS)
