"""Tasks over a user's own tools, made offline from nothing but their schemas.

Requests are orders in the words of the tool's description and name, with values that fit the
arguments' schemas. Training and held-out tasks differ in openings, cues, values and purposes, and
in all that the natural register keeps apart.
"""

import dataclasses
import json
import math
import random
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Literal

import jsonschema
from referencing import Registry

from grpo_jax.files.assets import read_asset
from grpo_jax.tasks.schema import ToolSpec, resolve
from grpo_jax.tasks.synthetic.natural import natural_rows
from grpo_jax.tasks.synthetic.natural_tools import (
  SLOT,
  Argument,
  Kind,
  NaturalTool,
  Sentence,
  Value,
  part_of,
  read_phrases,
  read_tools,
)
from grpo_jax.tasks.synthetic.purposes import HELD_OUT_PURPOSES, TRAINING_PURPOSES
from grpo_jax.tasks.synthetic.recipes import PHRASINGS, REQUESTS, Phrasing, worded

Part = Literal["train", "held_out"]
OWN_SIZES: Mapping[Part, int] = {"train": 1500, "held_out": 200}
SENTENCES: Mapping[Kind, int] = {
  "execute": 40, "orders": 8, "clarify": 24, "no_tool": 0, "harm": 16,
}  # fmt: skip
OPTIONAL_SHARE = 0.4  # of the optional arguments are given
SHUFFLED_SHARE = 0.25  # of the requests give their values in another order than the schema's
TWO_MISSING_SHARE = 0.15
CANDIDATES = 40  # values of an open argument, before they are parted
CLOSED = 4  # so few values belong to both parts, as those of an enum do
NEAR = 2  # tools that count as near another
LONGEST_ORDER = 12  # words of a description

_ASSET = read_asset("synthetic/own_tools")
_VERBS = frozenset(_ASSET["words"]["verbs"].split())
_IDLE = frozenset(_ASSET["words"]["idle"].split())
_FRAMES: Mapping[Part, Mapping[str, Any]] = {"train": REQUESTS, "held_out": _ASSET["held_out"]}
_NUMBER_WORDS = (
  "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
  "twelve",
)  # fmt: skip
_NAME_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# "This function returns the ..." says what an order for it would be.
_LEAD = re.compile(
  r"^(?:(?:this|the|a) )?(?:(?:tool|function|api|endpoint|method) )?"
  r"(?:(?:is used to|can be used to|allows (?:you|users?|the user) to|lets you|will|to) )?",
  re.IGNORECASE,
)
_GIVEN = re.compile(
  r"\s+(?:in|for|of|at|from|on|to|by)\s+(?:an?|the|any)?\s*"
  r"(?:given|specified|specific|particular|certain|provided)\b.*$"
)
_TAIL = re.compile(r"\s+(?:in|for|from|at|on|by|between|to|with|using|based|given)\b.*$")
_QUOTED_EXAMPLE = re.compile(
  r"""(?:e\.g\.|i\.e\.|for example|such as|like|example:)[,:]?\s*["'`“]([^"'`”]{1,60})["'`”]""",
  re.IGNORECASE,
)


def own_rows(
  specs: Sequence[ToolSpec], seed: int, part: Part, size: int | None = None
) -> list[dict[str, Any]]:
  """Makes tasks over a user's tools: a pure function of its arguments.

  Args:
    specs: the tools.
    seed: of the data; what belongs to which part does not depend on it.
    part: `train`, or `held_out` with other openings, cues, values, purposes and surroundings.
    size: number of rows; the part's own size when None.

  Returns:
    Rows as `natural.generate_natural` makes them. Requests that none of the tools can serve are
    wishes, and orders for tools of the natural register that share no word with them.

  Raises:
    ValueError: no tool's calls can be said in words, or more rows than there are distinct requests.
  """
  size = OWN_SIZES[part] if size is None else size
  tools, problems = sayable(specs, part)
  if not tools:
    raise ValueError("; ".join(problems) or "there are no tools")
  own = frozenset[str]().union(*map(_topics, specs))
  strange = lambda text: not own & _content(text)
  phrases = read_phrases("phrases_train" if part == "train" else "phrases_held_out")
  phrases = dataclasses.replace(phrases, wishes=list(filter(strange, phrases.wishes)))
  others = read_tools("train" if part == "train" else "unseen")
  others = tuple(tool for tool in others if not own & _topics(tool.spec))
  return natural_rows(tools, phrases, seed, size, part, register="own", others=others)


def sayable(specs: Sequence[ToolSpec], part: Part) -> tuple[list[NaturalTool], list[str]]:
  """The tools with their sentences, and why those that are left out are.

  Args:
    specs: the tools.
    part: `train` or `held_out`.
  """
  tools, problems = [], []
  for spec in specs:
    try:
      tools.append(_tool(spec, part))
    except ValueError as error:
      problems.append(str(error))
  for index, tool in enumerate(tools):
    shared = {
      other.name: len(_topics(tool.spec) & _topics(other.spec))
      for other in tools
      if other is not tool
    }
    near = sorted((name for name, number in shared.items() if number), key=lambda n: -shared[n])
    tools[index] = dataclasses.replace(tool, near=near[:NEAR])
  return tools, problems


def _tool(spec: ToolSpec, part: Part) -> NaturalTool:
  arguments = []
  for name, schema in spec.properties.items():
    required = name in spec.required
    try:
      arguments.append(_argument(spec, name, schema, required, part))
    except ValueError as error:
      if required:
        raise ValueError(f"{spec.name}: {error}") from None
  tool = NaturalTool(spec.name, spec.description, arguments, (), {}, given=spec)
  return dataclasses.replace(tool, requests=_requests(tool, part))


# --- sentences -----------------------------------------------------------------------------------


def _requests(tool: NaturalTool, part: Part) -> dict[Kind, list[Sentence]]:
  rng = random.Random(f"{part}:{tool.name}")
  purposes = TRAINING_PURPOSES if part == "train" else HELD_OUT_PURPOSES
  orders = _orders(tool.spec)
  required = [argument for argument in tool.arguments if argument.required]

  def request(arguments: Sequence[Argument], phrasing: Phrasing) -> str:
    openings = [o for o in _FRAMES[part]["openings"][phrasing] if "{thing}" not in o]
    opening = rng.choice(openings)
    opening = opening.format(do=rng.choice(orders), short=" ".join(name_words(tool.name)))
    return worded(rng, opening, _cues(rng, arguments, phrasing, part), phrasing)

  def given() -> list[Argument]:
    return [a for a in tool.arguments if a.required or rng.random() < OPTIONAL_SHARE]

  def draw(kind: Kind) -> str:
    phrasing = rng.choice(PHRASINGS)
    if kind == "orders":
      cues = _cues(rng, required or tool.arguments, "casual", part)
      return " ".join((rng.choice(orders), " and ".join(cues))).strip()
    if kind == "clarify":
      several = len(required) > 1 and rng.random() < TWO_MISSING_SHARE
      missing = rng.sample(required, 2 if several else 1)
      return request([a for a in given() if a not in missing], phrasing)
    text = request(given(), phrasing)
    return purposes.with_harm(rng, text, phrasing) if kind == "harm" else text

  requests: dict[Kind, list[Sentence]] = {}
  for kind, number in SENTENCES.items():
    possible = number if required or kind != "clarify" else 0
    texts = dict.fromkeys(draw(kind) for _ in range(possible))
    requests[kind] = [Sentence(text) for text in texts]
  return requests


def _cues(
  rng: random.Random, arguments: Sequence[Argument], phrasing: Phrasing, part: Part
) -> list[str]:
  """What gives each argument's value, with a slot for it."""
  frames = _FRAMES[part]["terse_cues" if phrasing == "terse" else "cues"]
  cues = []
  for argument in arguments:
    kinds = {"integer": "count", "number": "measure", "boolean": "flag", "array": "list"}
    kind = kinds.get(argument.schema["type"], "text")
    if kind == "count" and not argument.name.endswith("s"):  # "with 2 page"
      kind = "measure"
    form = rng.choice(frames[kind])
    name = " ".join(name_words(argument.name))
    cues.append(form.format(n=name, be=_be(name), v=f"{{{argument.name}}}"))
  if rng.random() < SHUFFLED_SHARE:
    rng.shuffle(cues)
  return cues


def _be(name: str) -> str:
  return "are" if name.endswith("s") and not name.endswith("ss") else "is"


def _orders(spec: ToolSpec) -> list[str]:
  """What a tool is told to do, in the words of its description, or else of its name."""
  name = name_words(spec.name)
  first = re.split(r"[.;:(\n]|, |e\.g", spec.description.strip(), maxsplit=1)[0]
  words = re.sub(r"[{}\"]", "", _LEAD.sub("", first)).split()
  if words and (verb := _base(words[0])) in _VERBS:
    words[0] = verb
    order = _GIVEN.sub("", " ".join(words))
    order = re.sub(r"\b(?:the user|a user|user)'s\b", "my", order)
    order = re.sub(r"\b(?:the user|a user)\b", "me", order)
    short = _TAIL.sub("", order)
    orders = [order] if len(order.split()) <= LONGEST_ORDER else []
    orders += [short] if len(short.split()) > 2 and short != order else []
    if orders:
      return orders
  return [" ".join(name)] if name[0] in _VERBS else [f"run {' '.join(name)}"]


def _base(word: str) -> str:
  """The verb of "Returns" or "Searches"; other words as they are, in lower case."""
  word = word.lower()
  if word in _VERBS or not word.endswith("s"):
    return word
  stems = (f"{word[:-3]}y" if word.endswith("ies") else word[:-1], word[:-2])
  return next((stem for stem in stems if stem in _VERBS), word)


def name_words(name: str) -> list[str]:
  """The words of a name in snake_case, camelCase or kebab-case, in lower case."""
  return [part.lower() for part in _NAME_PART.findall(name)] or [name.lower()]


def _topics(spec: ToolSpec) -> frozenset[str]:
  """The words that say what a tool is about."""
  names = " ".join(name_words(spec.name))
  arguments = " ".join(word for name in spec.properties for word in name_words(name))
  return _content(f"{names} {spec.description} {arguments}")


def _content(text: str) -> frozenset[str]:
  words = {word.removesuffix("s") for word in re.findall(r"[a-z]{4,}", text.lower())}
  return frozenset(word for word in words if not {word, f"{word}s"} & (_IDLE | _VERBS))


# --- values --------------------------------------------------------------------------------------


def _argument(spec: ToolSpec, name: str, schema: Any, required: bool, part: Part) -> Argument:
  """An argument with the part's values.

  Raises:
    ValueError: none can be made up, or none said in words.
  """
  if not SLOT.fullmatch(f"{{{name}}}"):
    raise ValueError(f"the argument {name!r} has a name with spaces or braces")
  rng = random.Random(f"{spec.name}.{name}")  # of no seed: what is held out stays so
  found = _one_type(schema, spec.parameters)
  check = {**spec.parameters, "required": []}
  validator = jsonschema.Draft202012Validator(check, registry=Registry())
  fitting = lambda values: [v for v in values if validator.is_valid({name: v.value})]
  values = fitting(_values(rng, found, spec, name, part))
  values = values or fitting(_values(rng, found, spec, name, None))  # too few to be parted
  if not values:
    raise ValueError(
      f'no values for the argument {name!r} can be made up; add "examples" to its schema'
    )
  spoken = " ".join(name_words(name))
  ask = [form.format(n=spoken, be=_be(spoken)) for form in _ASSET[part]["ask"]]
  return Argument(name, found, required, values, ask)


def _one_type(schema: Any, root: Any) -> dict[str, Any]:
  """A schema without references and alternatives: the first that is not null."""
  schema = dict(resolve(schema, root))
  options = schema.pop("anyOf", None) or schema.pop("oneOf", None) or []
  for option in map(lambda option: resolve(option, root), options):
    if option.get("type") != "null":
      schema = {**option, **schema}
      break
  kind = schema.get("type")
  if isinstance(kind, list):
    kind = next((one for one in kind if one != "null"), "string")
  closed = schema.get("enum") or [schema.get("const")]
  guess = {bool: "boolean", int: "integer", float: "number"}.get(type(closed[0]), "string")
  return {**schema, "type": kind or guess}


def _values(
  rng: random.Random, schema: Mapping[str, Any], spec: ToolSpec, name: str, part: Part | None
) -> list[Value]:
  """Values of a schema that belong to one part, or to any; a closed set belongs to both."""
  kind = schema["type"]
  if kind == "array":
    items = _one_type(schema.get("items") or {}, spec.parameters)
    return _lists(rng, _values(rng, items, spec, name, part))
  if closed := [v for v in schema.get("enum") or [schema.get("const")] if v is not None]:
    return [_value(value) for value in closed]
  if kind == "boolean":
    return [_value(True), _value(False)]
  if kind not in ("string", "integer", "number"):
    return []
  shown, more, quoted = _distinct(_examples(rng, schema)), list[Any](), False
  if len(shown) < CLOSED and kind == "string":
    more, quoted = _texts(rng, schema, name)
  elif len(shown) < CLOSED:
    more = _numbers(rng, schema, name)
  more = _distinct(value for value in more if value not in shown)
  texts = [*shown, *more]
  if part is not None and len(texts) > CLOSED:
    parted = part_of(more or shown, part == "held_out", key=json.dumps)
    texts = [*shown, *parted] if more and part == "train" else parted
  return [_value(value, quoted) for value in texts]


def _distinct(values: Iterable[Any]) -> list[Any]:
  return list({json.dumps(value): value for value in values}.values())


def _value(value: Any, quoted: bool = False) -> Value:
  """A value and how it is said."""
  if isinstance(value, bool):
    return Value(value, ("true", "yes", "on") if value else ("false", "no", "off"))
  if isinstance(value, int) and 0 <= value < len(_NUMBER_WORDS):
    return Value(value, (str(value), _NUMBER_WORDS[value]))
  if isinstance(value, str) and quoted:
    return Value(value, (f'"{value}"',))
  if isinstance(value, str) and "_" in value and value.islower():  # of an enum
    return Value(value, (value, value.replace("_", " ")))
  return Value(value)


def _lists(rng: random.Random, items: Sequence[Value]) -> list[Value]:
  """Lists of one to three items."""
  lists = []
  for _ in range(CANDIDATES if items else 0):
    chosen = rng.sample(items, min(len(items), rng.randint(1, 3)))
    said = [item.spoken(rng) for item in chosen]
    text = " and ".join(filter(None, (", ".join(said[:-1]), said[-1])))
    lists.append(Value([item.value for item in chosen], (text,)))
  return lists


def _examples(rng: random.Random, schema: Mapping[str, Any]) -> list[Any]:
  """The values that a schema itself shows, and others of their form."""
  found = [*(schema.get("examples") or ()), schema.get("example"), schema.get("default")]
  if schema["type"] == "string":
    found += _QUOTED_EXAMPLE.findall(str(schema.get("description") or ""))
    found = [value for value in found if isinstance(value, str) and value.strip()]
    shapes = [value for value in found if re.search(r"\d{2}", value)]
    for _ in range(CANDIDATES if shapes and not schema.get("format") else 0):
      digit = lambda _: str(rng.randint(1, 9))
      found.append(re.sub(r"\d", digit, rng.choice(shapes)))
    return found
  whole = schema["type"] == "integer"
  return [v for v in found if type(v) is int or (type(v) is float and not whole)]


def _texts(rng: random.Random, schema: Mapping[str, Any], name: str) -> tuple[list[str], bool]:
  """Texts that suit a format, a name or a description, and whether they are to be quoted."""
  form = str(schema.get("format"))
  if form not in _FORMS:
    kind = _entry("kinds", schema, name)
    if "values" in kind:
      return list(kind["values"]), kind.get("quoted", False)
    form = kind["form"]
  return [_FORMS[form](rng) for _ in range(CANDIDATES)], False


def _numbers(rng: random.Random, schema: Mapping[str, Any], name: str) -> list[float]:
  """Numbers between the schema's bounds, or else those that are usual for such a name."""
  usual = _entry("numbers", schema, name)
  whole = schema["type"] == "integer"
  step = schema.get("multipleOf") or (1 if whole else 0.5)
  low = schema.get("minimum", schema.get("exclusiveMinimum"))
  high = schema.get("maximum", schema.get("exclusiveMaximum"))
  span = usual["high"] - usual["low"]
  if low is None:
    low = usual["low"] if high is None or high > usual["low"] else high - span
  high = (usual["high"] if usual["high"] > low else low + span) if high is None else high
  first, last = math.ceil(low / step), math.floor(high / step)  # exclusive bounds are sorted out
  count = max(0, last - first + 1)
  steps = rng.sample(range(first, last + 1), min(CANDIDATES, count))
  numbers = [round(n * step, 6) for n in steps]
  return [int(number) if number == int(number) else number for number in numbers]


def _entry(table: str, schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  """The first entry of a table that has a word of a name, or else of a description, or the last."""
  described = re.findall(r"[a-z]+", str(schema.get("description") or "").lower())
  for words in (name_words(name), described):
    for entry in _ASSET[table]:
      if {*words, *(word.removesuffix("s") for word in words)} & set(entry["words"].split()):
        return dict(entry)
  return dict(_ASSET[table][-1])


def _date(rng: random.Random) -> str:
  return (date(2025, 1, 1) + timedelta(days=rng.randrange(700))).isoformat()


def _time(rng: random.Random) -> str:
  return f"{rng.randrange(6, 23):02d}:{rng.randrange(0, 60, 5):02d}"


def _id(rng: random.Random) -> str:
  letters = "".join(rng.choices("ABCDEFGHKLMNPRSTUVXZ", k=rng.randint(1, 3)))
  return f"{letters}{rng.choice(('-', ''))}{rng.randint(100, 99999)}"


def _login(rng: random.Random) -> str:
  name, other = (rng.choice(_ASSET["logins"]) for _ in range(2))
  return rng.choice((f"{name}.{other}", f"{name[0]}.{other}", f"{name}{rng.randint(2, 99)}"))


_FORMS: Mapping[str, Callable[[random.Random], str]] = {
  "date": _date,
  "time": _time,
  "date-time": lambda rng: f"{_date(rng)}T{_time(rng)}:00Z",
  "email": lambda rng: f"{_login(rng)}@{rng.choice(_ASSET['logins'])}.example",
  "uri": lambda rng: f"https://{rng.choice(_ASSET['logins'])}.example/{_login(rng)}",
  "phone": lambda rng: (
    f"+{rng.randint(1, 99)} {rng.randint(100, 999)} 555{rng.randint(1000, 9999)}"
  ),
  "uuid": lambda rng: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
  "ipv4": lambda rng: f"192.0.2.{rng.randint(1, 254)}",
  "id": _id,
}
