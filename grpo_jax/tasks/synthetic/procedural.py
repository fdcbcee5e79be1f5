"""A procedural corpus of tool-calling demonstrations over made-up tools.

The embedded policy is warmed up on it, and on nothing else. Every tool is drawn afresh from a list
of words that holds none of the evaluation tools' words, so whatever the policy can do with an
evaluation tool it does by reading the schema in the prompt.

The demonstrations imitate uncurated logs: the calls in them are right, but the people who wrote
them disagreed about *when* to call. `DEMONSTRATED` says how often each behavior was shown in each
situation. This is what reinforcement learning is left to settle, and it is documented as such.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_jax.files.assets import read_asset
from grpo_jax.tasks.schema import Behavior, ToolSpec
from grpo_jax.tasks.synthetic.recipes import enumerated

Situation = Literal["complete", "missing", "unfit", "harmful"]

SITUATIONS: Mapping[Situation, float] = {
  "complete": 0.54, "missing": 0.28, "unfit": 0.09, "harmful": 0.09,
}  # fmt: skip

# P(demonstrated behavior | situation). The wanted behavior is the first one of each row.
DEMONSTRATED: Mapping[Situation, Mapping[Behavior, float]] = {
  "complete": {"execute": 0.96, "clarify": 0.02, "refuse": 0.02},
  "missing": {"clarify": 0.42, "execute": 0.55, "refuse": 0.03},
  "unfit": {"refuse": 0.28, "execute": 0.68, "clarify": 0.04},
  "harmful": {"refuse": 0.28, "execute": 0.70, "clarify": 0.02},
}

PHRASES = read_asset("synthetic/procedural")


@dataclass(frozen=True)
class Words:
  """The inventory the corpus draws from: lower-case words of letters only."""

  verbs: Sequence[str]
  nouns: Sequence[str]
  adjectives: Sequence[str]


@dataclass(frozen=True)
class Demonstration:
  """A request and the answer that somebody gave to it."""

  situation: Situation
  request: str
  answer: str


@dataclass(frozen=True)
class Argument:
  """One argument: its name in the schema, how people say it, and how its values are drawn."""

  name: str
  spoken: str
  schema: Mapping[str, Any]
  draw: Callable[[random.Random], Any]
  natural: str


@dataclass(frozen=True)
class MadeTool:
  """A tool together with the ways in which people ask for it."""

  spec: ToolSpec
  verb: str
  thing: str
  arguments: Sequence[Argument]


def demonstrations(
  words: Words, seed: int, index: int, group: int
) -> tuple[tuple[ToolSpec, ...], list[Demonstration]]:
  """Draws one set of tools and `group` demonstrations over it: a pure function of its arguments.

  Args:
    words: the inventory.
    seed: of the corpus.
    index: of the set within the corpus.
    group: how many requests share the set (they share its prompt in training).

  Returns:
    The tools on offer and the demonstrations.
  """
  rng = random.Random(f"{seed}:{index}")
  tools = [_make_tool(rng, words) for _ in range(rng.choices((1, 2, 3), (50, 35, 15))[0])]
  made = [_demonstrate(rng, words, tools) for _ in range(group)]
  return tuple(tool.spec for tool in tools), made


def _demonstrate(rng: random.Random, words: Words, tools: Sequence[MadeTool]) -> Demonstration:
  situation = rng.choices(list(SITUATIONS), list(SITUATIONS.values()))[0]
  tool = rng.choice(tools)
  asked = _make_tool(rng, words) if situation == "unfit" else tool
  required = [a for a in asked.arguments if a.name in asked.spec.required]
  missing = []
  if situation == "missing":
    missing = rng.sample(required, min(len(required), 1 if rng.random() < 0.85 else 2))
  given = [
    (a, a.draw(rng))
    for a in asked.arguments
    if a not in missing and (a in required or rng.random() < 0.45)
  ]
  request = _request(rng, asked, given)
  if situation == "unfit" and rng.random() < 0.3:
    request = rng.choice(PHRASES["off_topic"]).format(
      noun=rng.choice(words.nouns), adjective=rng.choice(words.adjectives)
    )
    given = []
  if situation == "harmful":
    request = _with_harm(rng, request)

  shown = DEMONSTRATED[situation]
  behavior = rng.choices(list(shown), list(shown.values()))[0]
  if behavior == "execute":
    values = {a.name: v for a, v in given}
    if asked is not tool:  # an eager call of a tool that does not fit, with a text of the request
      texts = [v for v in values.values() if isinstance(v, str)] or [asked.thing]
      values = {a.name: texts[0] for a in tool.arguments[:1]}
    answer = json.dumps([{"name": tool.spec.name, "arguments": values}], ensure_ascii=False)
  elif behavior == "clarify":
    answer = _question(rng, [a.spoken for a in missing or [rng.choice(tool.arguments)]])
  elif situation == "harmful":
    answer = "Sorry, I can't help with that."
  else:
    answer = rng.choice(("Sorry, none of my tools can do that.", "Sorry, I have no tool for that."))
  return Demonstration(situation, request, answer)


def _question(rng: random.Random, names: Sequence[str]) -> str:
  forms = ("Which {} should I use?", "Could you tell me the {}?", "What is the {}?")
  return rng.choice(forms).format(" and ".join(names))


# --- requests ------------------------------------------------------------------------------------


def _request(rng: random.Random, tool: MadeTool, given: Sequence[tuple[Argument, Any]]) -> str:
  style = rng.choice(list(PHRASES["intents"]))
  intent = rng.choice(PHRASES["intents"][style]).format(
    verb=tool.verb, thing=tool.thing, Verb=tool.verb.capitalize(), Thing=tool.thing.capitalize()
  )
  given = list(given)
  if rng.random() < 0.4:
    rng.shuffle(given)
  cues = [_cue(rng, argument, value, style) for argument, value in given]
  if not cues:
    return intent.rstrip(":") + ("." if style == "formal" else "")
  terse = style == "terse"
  joiner = rng.choice((", ", " ", "; ") if terse else (", ", " ", " and ", ", and "))
  start = rng.choice((" ", " ", ", ", ": " if terse else ". "))
  intent = intent if start == " " else intent.rstrip(":")
  if start == ". ":
    cues[0] = cues[0][0].upper() + cues[0][1:]
  text = intent + start + joiner.join(cues)
  if terse and rng.random() < 0.15:
    text = joiner.join(cues) + joiner + intent.rstrip(":")
  # Both are drawn, whichever is used: the corpus of a seed stays what it was.
  formal, casual = rng.choice((".", ".", "?")), rng.choice(("", "", "?", "!", " please", " thanks"))
  return text + {"formal": formal, "casual": casual, "terse": ""}[style]


def _cue(rng: random.Random, argument: Argument, value: Any, style: str) -> str:
  shown, kind = value, "text"
  if isinstance(value, bool):
    shown, kind = json.dumps(value), "flag"
  elif isinstance(value, (int, float)):
    kind = "count"
  elif isinstance(value, list):
    shown, kind = enumerated(rng, value), "list"
  elif value.islower() and rng.random() < 0.4:
    shown = f'"{value}"'
  if argument.natural and rng.random() < 0.25:
    return f"{argument.natural} {shown}"
  forms = PHRASES["cues"][kind]
  return rng.choice(forms[:2] if style == "terse" else forms).format(n=argument.spoken, v=shown)


def _with_harm(rng: random.Random, request: str) -> str:
  harm = PHRASES["harm"]
  act = f"{rng.choice(harm['verbs'])} {rng.choice(harm['targets'])}"
  plan = rng.choice(harm["plans"])
  tail = rng.choice(harm["tails"]).format(act=act, plan=plan)
  if rng.random() < 0.12:
    lead = rng.choice(harm["leads"]).format(act=act, plan=plan)
    return lead + rng.choice((". ", ": ")) + request
  return request.rstrip(".?!") + rng.choice((" ", ", ", ". ")) + tail + rng.choice((".", ""))


# --- tools ---------------------------------------------------------------------------------------


def _make_tool(rng: random.Random, words: Words) -> MadeTool:
  verb, noun, other = rng.choice(words.verbs), rng.choice(words.nouns), rng.choice(words.nouns)
  thing = rng.choice((noun, noun, f"{rng.choice(words.adjectives)} {noun}", f"{other} {noun}"))
  parts = (verb, *thing.split())
  if rng.random() < 0.2:
    parts = (*thing.split(), verb)
  arguments: list[Argument] = []
  while len(arguments) < rng.choices((1, 2, 3, 4), (10, 35, 35, 20))[0]:
    argument = _make_argument(rng, words)
    if argument.name not in {a.name for a in arguments} and argument.name not in parts:
      arguments.append(argument)
  required = [a.name for a in arguments[: rng.choices((1, 2, 3), (45, 45, 10))[0]]]
  mention = arguments[0].spoken
  description = rng.choice(
    (
      f"{verb.capitalize()} the {thing}",
      f"{verb.capitalize()} a {thing} for a {mention}",
      f"{verb.capitalize()} {thing} by {mention}",
      f"{verb.capitalize()} {thing}",
      f"Get the {thing} of a {mention}",
    )
  )
  spec = ToolSpec(
    "_".join(parts),
    description,
    {
      "type": "object",
      "properties": {a.name: dict(a.schema) for a in arguments},
      "required": required,
    },
  )
  return MadeTool(spec, verb, thing, arguments)


def _make_argument(rng: random.Random, words: Words) -> Argument:
  noun = rng.choice(words.nouns)
  kind = rng.choices(
    ("proper", "word", "phrase", "code", "integer", "number", "boolean", "enum", "array"),
    (30, 12, 6, 4, 20, 7, 7, 9, 5),
  )[0]
  spoken = noun
  if rng.random() < 0.35:
    spoken = f"{rng.choice(words.adjectives if rng.random() < 0.5 else words.nouns)} {noun}"
  json_types = ("integer", "number", "boolean", "array")
  schema: dict[str, Any] = {"type": kind if kind in json_types else "string"}
  natural = ""
  if kind == "enum":
    choices = rng.sample(words.nouns if rng.random() < 0.5 else words.adjectives, rng.randint(2, 4))
    schema["enum"] = choices
    draw = lambda r: r.choice(choices)
  elif kind == "array":
    schema["items"] = {"type": "string"}
    items = rng.choice(("proper", "word"))
    draw = lambda r: [_text(r, words, items) for _ in range(r.randint(2, 3))]
  elif kind == "integer":
    draw = lambda r: r.choice((r.randint(1, 30), r.randint(1, 999), r.randint(1, 9)))
  elif kind == "number":
    draw = lambda r: r.choice((r.randint(1, 999), round(r.uniform(0, 99), 1)))
  elif kind == "boolean":
    draw = lambda r: r.random() < 0.6
  else:
    natural = rng.choice(("in", "for", "to", "from", "about", "at", "of", ""))
    draw = lambda r: _text(r, words, kind)
  if rng.random() < 0.25:
    article = rng.choice(("The ", "Name of the ", "A ", ""))
    schema["description"] = (article + spoken) if article else spoken.capitalize()
  return Argument(spoken.replace(" ", "_"), spoken, schema, draw, natural)


def _text(rng: random.Random, words: Words, kind: str) -> str:
  if kind == "word":
    return rng.choice(words.nouns)
  if kind == "phrase":
    return f"{rng.choice(words.adjectives)} {rng.choice(words.nouns)}"
  if kind == "code":
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTUVXYZ") for _ in range(rng.randint(1, 3)))
    return letters + (str(rng.randint(1, 999)) if rng.random() < 0.7 else "")
  return " ".join(_name(rng, words) for _ in range(1 if rng.random() < 0.7 else 2))


def _name(rng: random.Random, words: Words) -> str:
  if rng.random() < 0.4:
    return rng.choice(words.nouns).capitalize()
  syllables = "".join(rng.choice(PHRASES["syllables"]) for _ in range(rng.randint(1, 3)))
  return (syllables + rng.choice(PHRASES["endings"])).capitalize()
