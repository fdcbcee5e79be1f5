"""How people ask for a tool: its schema, the values they mention, and the phrases that carry them.

A recipe turns argument values into a request. Values stand in the request exactly as they stand in
the call, and nearly every one is introduced by a cue that holds a word of its argument's name, so
that a small model can learn the task by reading the schema and copying.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from grpo_jax.tasks.schema import ToolSpec

Phrasing = Literal["formal", "casual", "terse"]
PHRASINGS: tuple[Phrasing, ...] = get_args(Phrasing)
Kind = Literal["text", "count", "measure", "flag", "list"]

# {n} is the spoken name of the argument, {be} its verb, {v} its value.
GENERIC_CUES: Mapping[Kind, str] = {
  "text": (
    "with the {n} set to {v}|with {n} {v}|with the {n} {v}|with {v} as the {n}|"
    "where the {n} {be} {v}"
  ),
  "count": "with {n} set to {v}|with {v} {n}|for {v} {n}|where the number of {n} is {v}",
  "measure": "with the {n} set to {v}|with {n} {v}|with a {n} of {v}|where the {n} is {v}",
  "flag": "with {n} set to {v}|with {n} {v}|where {n} is {v}",
  "list": "with the {n} {v}|with {n} {v}|where the {n} are {v}|with the {n} set to {v}",
}
TERSE_CUES: Mapping[Kind, str] = {
  "text": "{n} {v}|{n}: {v}",
  "count": "{n} {v}|{n}: {v}|{v} {n}",
  "measure": "{n} {v}|{n}: {v}",
  "flag": "{n} {v}|{n}: {v}|{n} set to {v}",
  "list": "{n} {v}|{n}: {v}",
}
# {do} is an order ("order a pizza"), {thing} what is wanted ("a pizza").
OPENINGS: Mapping[Phrasing, str] = {
  "formal": (
    "Please {do}|Could you {do}|Could you please {do}|I would like you to {do}|I need you to {do}|"
    "Would you kindly {do}|I would like {thing}|I am looking for {thing}|I require {thing}"
  ),
  "casual": (
    "hey, can you {do}|can you {do}|hi! {do}|hey {do}|pls {do}|{do}|need {thing}|yo, {do}|"
    "i need you to {do}|i want {thing}|any chance you can {do}|do me a favour and {do}"
  ),
  "terse": "{short}",
}
NATURAL_SHARE = 0.15  # cues without a word of the argument's name, such as "from Lima"


def words(text: str) -> tuple[str, ...]:
  """The words of `text`."""
  return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
  """The `|`-separated phrases of `text`."""
  return tuple(text.split("|"))


@dataclass(frozen=True)
class Argument:
  """One argument of a recipe.

  Attributes:
    name: its name in the schema.
    kind: how its values are spoken of; picks the generic cues and the JSON type.
    values: what its value is drawn from (for `list`: the elements).
    cues: cues of its own, `|`-separated, with {v} for the value.
    natural: cues that hold no word of its name, used for `NATURAL_SHARE` of its mentions.
    schema: overrides of the JSON schema that follows from `kind`.
    quoted: whether the request puts the value into double quotes.
  """

  name: str
  kind: Kind
  values: Sequence[Any]
  cues: str = ""
  natural: str = ""
  schema: Mapping[str, Any] = field(default_factory=dict)
  quoted: bool = False

  @property
  def spoken(self) -> str:
    """The name as people say it."""
    return self.name.replace("_", " ")

  def to_schema(self) -> dict[str, Any]:
    """The argument's JSON schema."""
    types = {"count": "integer", "measure": "number", "flag": "boolean", "list": "array"}
    schema: dict[str, Any] = {"type": types.get(self.kind, "string")}
    if self.kind == "list":
      schema["items"] = {"type": "string"}
    return {**schema, **self.schema}

  def draw(self, rng: random.Random) -> Any:
    """Draws a value."""
    if self.kind == "list":
      return rng.sample(self.values, rng.randint(2, 3))
    return rng.choice(self.values)


@dataclass(frozen=True)
class Recipe:
  """A tool and the ways in which people ask for it.

  Attributes:
    name: the tool's name.
    description: the tool's description.
    required: the arguments that a call must give.
    optional: the arguments that it may give.
    do: orders, `|`-separated.
    thing: what is wanted, `|`-separated; empty if that cannot be said on its own.
    short: terse openings, `|`-separated.
  """

  name: str
  description: str
  required: Sequence[Argument]
  optional: Sequence[Argument]
  do: str
  thing: str
  short: str

  @property
  def arguments(self) -> tuple[Argument, ...]:
    """All arguments in the order of the schema."""
    return (*self.required, *self.optional)

  @property
  def spec(self) -> ToolSpec:
    """The tool as the policy sees it."""
    parameters = {
      "type": "object",
      "properties": {argument.name: argument.to_schema() for argument in self.arguments},
      "required": [argument.name for argument in self.required],
    }
    return ToolSpec(self.name, self.description, parameters)

  def draw_values(self, rng: random.Random, optional_share: float) -> dict[str, Any]:
    """Draws a call's arguments in schema order: all required ones, optional ones by chance."""
    values: dict[str, Any] = {}
    for argument in self.arguments:
      if argument in self.optional and rng.random() >= optional_share:
        continue
      value = argument.draw(rng)
      while value in values.values():  # a flight from Lima to Lima would be no request
        value = argument.draw(rng)
      values[argument.name] = value
    return values

  def ask(self, rng: random.Random, values: Mapping[str, Any], phrasing: Phrasing) -> str:
    """Writes a request that gives `values` and no other argument.

    Args:
      rng: picks the phrases.
      values: argument values by name.
      phrasing: one of `PHRASINGS`.
    """
    openings = [o for o in phrases(OPENINGS[phrasing]) if self.thing or "{thing}" not in o]
    opening = rng.choice(openings).format(
      do=rng.choice(phrases(self.do)),
      thing=rng.choice(phrases(self.thing)),
      short=rng.choice(phrases(self.short)),
    )
    given = [argument for argument in self.arguments if argument.name in values]
    if rng.random() < 0.25:
      rng.shuffle(given)
    cues = [_cue(rng, argument, values[argument.name], phrasing) for argument in given]
    return _sentence(rng, opening, cues, phrasing)


def spoken_value(argument: Argument, value: Any, rng: random.Random) -> str:
  """The value as it stands in a request: lists are enumerated, everything else is verbatim."""
  if isinstance(value, list):
    return rng.choice((" and ", ", ")).join((", ".join(value[:-1]), value[-1]))
  if isinstance(value, str):
    return f'"{value}"' if argument.quoted else value
  return json.dumps(value)


def _cue(rng: random.Random, argument: Argument, value: Any, phrasing: Phrasing) -> str:
  if phrasing == "terse":
    forms = TERSE_CUES[argument.kind]
  elif argument.natural and rng.random() < NATURAL_SHARE:
    forms = argument.natural
  elif argument.cues and rng.random() < 0.6:
    forms = argument.cues
  else:
    forms = GENERIC_CUES[argument.kind]
  spoken = spoken_value(argument, value, rng)
  be = "are" if argument.name.endswith("s") else "is"
  return rng.choice(phrases(forms)).format(n=argument.spoken, be=be, v=spoken)


def _sentence(rng: random.Random, opening: str, cues: Sequence[str], phrasing: Phrasing) -> str:
  if phrasing == "terse":
    joiner = rng.choice((", ", ", ", " ", "; "))
    if cues and rng.random() < 0.15:  # the values first, as in a search box
      return joiner.join((*cues, opening))
    start = rng.choice((" ", ", ", ": ")) if cues else ""
    return opening + start + joiner.join(cues)
  joiner = rng.choice((", ", " and ", " "))
  text = " ".join((opening, joiner.join(cues))) if cues else opening
  if phrasing == "formal":
    return text + ("?" if opening.startswith(("Could", "Would")) else ".")
  return text + rng.choice(("", "", "", " please", " thanks", "!"))
