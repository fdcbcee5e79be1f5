"""How people ask for a tool: its schema, the values they mention, and the phrases that carry them.

A recipe turns argument values into a request. Values stand in the request exactly as they stand in
the call, and nearly every one is introduced by a cue that holds a word of its argument's name, so
that a small model can learn the task by reading the schema and copying.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from grpo_jax.files.assets import read_asset
from grpo_jax.tasks.schema import ToolSpec

Phrasing = Literal["formal", "casual", "terse"]
PHRASINGS: tuple[Phrasing, ...] = get_args(Phrasing)
Kind = Literal["text", "count", "measure", "flag", "list"]

NATURAL_SHARE = 0.15  # cues without a word of the argument's name, such as "from Lima"
REQUESTS = read_asset("synthetic/requests")


@dataclass(frozen=True)
class Argument:
  """One argument of a recipe.

  Attributes:
    name: its name in the schema.
    kind: how its values are spoken of; picks the generic cues and the JSON type.
    values: what its value is drawn from (for `list`: the elements).
    cues: cues of its own, with {v} for the value.
    natural: cues that hold no word of its name, used for `NATURAL_SHARE` of its mentions.
    schema: overrides of the JSON schema that follows from `kind`.
    quoted: whether the request puts the value into double quotes.
  """

  name: str
  kind: Kind
  values: Sequence[Any]
  cues: Sequence[str] = ()
  natural: Sequence[str] = ()
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
    do: orders.
    thing: what is wanted; empty if that cannot be said on its own.
    short: terse openings.
  """

  name: str
  description: str
  required: Sequence[Argument]
  optional: Sequence[Argument]
  do: Sequence[str]
  thing: Sequence[str]
  short: Sequence[str]

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
    openings = [o for o in REQUESTS["openings"][phrasing] if self.thing or "{thing}" not in o]
    opening = rng.choice(openings).format(
      do=rng.choice(self.do), thing=rng.choice(self.thing or [""]), short=rng.choice(self.short)
    )
    given = [argument for argument in self.arguments if argument.name in values]
    if rng.random() < 0.25:
      rng.shuffle(given)
    cues = [_cue(rng, argument, values[argument.name], phrasing) for argument in given]
    return worded(rng, opening, cues, phrasing)


def enumerated(rng: random.Random, values: Sequence[str]) -> str:
  """Two or more texts as a request lists them."""
  return rng.choice((" and ", ", ")).join((", ".join(values[:-1]), values[-1]))


def _cue(rng: random.Random, argument: Argument, value: Any, phrasing: Phrasing) -> str:
  if phrasing == "terse":
    forms = REQUESTS["terse_cues"][argument.kind]
  elif argument.natural and rng.random() < NATURAL_SHARE:
    forms = argument.natural
  elif argument.cues and rng.random() < 0.6:
    forms = argument.cues
  else:
    forms = REQUESTS["cues"][argument.kind]
  if isinstance(value, list):
    spoken = enumerated(rng, value)
  elif isinstance(value, str):
    spoken = f'"{value}"' if argument.quoted else value
  else:
    spoken = json.dumps(value)
  be = "are" if argument.name.endswith("s") else "is"
  return rng.choice(forms).format(n=argument.spoken, be=be, v=spoken)


def worded(rng: random.Random, opening: str, cues: Sequence[str], phrasing: Phrasing) -> str:
  """A request: an opening and the cues that give its values."""
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
