"""The tools and phrases of the natural register, as their files give them.

A tool comes with the sentences in which people ask for it, a sentence with slots for values in the
words that people have for them: "a table for {party_size}" and `{is = 2, said = ["two", "2"]}`.
"""

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

from grpo_jax.files.assets import read_asset
from grpo_jax.tasks.schema import ToolSpec
from grpo_jax.tasks.synthetic.prompts import Style
from grpo_jax.tasks.synthetic.recipes import enumerated

Item = TypeVar("Item")

HELD_OUT_PART = 5  # one sentence in so many of each kind of each tool is kept for `seen`
SLOT = re.compile(r"\{([^{}\s]+)\}")


@dataclass(frozen=True)
class Value:
  """A value of an argument and what people say for it.

  Attributes:
    value: what stands in the call.
    said: spoken forms; empty: the value as it is written.
    accept: other values that are right as well.
  """

  value: Any
  said: Sequence[str] = ()
  accept: Sequence[Any] = ()

  @classmethod
  def read(cls, entry: Any) -> "Value":
    """Reads a bare value, or a table of `is`, `said` and `accept`."""
    if not isinstance(entry, Mapping):
      return cls(entry)
    return cls(entry["is"], entry.get("said", ()), entry.get("accept", ()))

  def spoken(self, rng: random.Random) -> str:
    """One way to say it."""
    if self.said:
      return rng.choice(self.said)
    if isinstance(self.value, list):
      return enumerated(rng, self.value) if len(self.value) > 1 else str(self.value[0])
    whole = isinstance(self.value, float) and self.value.is_integer()
    return str(int(self.value) if whole else self.value)


@dataclass(frozen=True)
class Argument:
  """One argument of a tool.

  Attributes:
    name: its name in the schema.
    schema: its JSON schema.
    required: whether a call must give it.
    values: what requests give for it; empty where sentences say it in their own words alone.
    ask: right ways to ask for it.
  """

  name: str
  schema: Mapping[str, Any]
  required: bool
  values: Sequence[Value]
  ask: Sequence[str]

  @classmethod
  def read(cls, table: Mapping[str, Any]) -> "Argument":
    """Reads an argument's table."""
    schema = {key: table[key] for key in ("type", "description", "enum", "items") if key in table}
    if isinstance(schema.get("items"), str):
      schema["items"] = {"type": schema["items"]}
    values = [Value.read(entry) for entry in table.get("values", table.get("enum", ()))]
    return cls(table["name"], schema, table.get("required", False), values, table.get("ask", ()))

  def find(self, value: Any) -> Value:
    """The value as the file lists it, with what is accepted beside it."""
    same = (found for found in self.values if found.value == value)
    return next(same, Value(value))


@dataclass(frozen=True)
class Sentence:
  """A message, or an order within one, with slots for spoken values.

  Attributes:
    text: the words, with {argument} for a value.
    given: values that the words themselves say.
    unless: names of tools that could do what is asked; they are not on offer then.
  """

  text: str
  given: Mapping[str, Any] = field(default_factory=dict)
  unless: Sequence[str] = ()

  @classmethod
  def read(cls, entry: Any) -> "Sentence":
    """Reads a bare text, or a table of `text`, `with` and `unless`."""
    if not isinstance(entry, Mapping):
      return cls(entry)
    return cls(entry["text"], entry.get("with", {}), entry.get("unless", ()))

  @cached_property
  def names(self) -> frozenset[str]:
    """The arguments that it gives."""
    return frozenset((*SLOT.findall(self.text), *self.given))


#: `execute` sentences give every required argument, and so do `orders`, clauses to be joined for
#: parallel calls; in `clarify` one is missing; `no_tool` ones sound right for this tool, and are
#: not; `harm` ones ask for harm done with it.
Kind = Literal["execute", "orders", "clarify", "no_tool", "harm"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class NaturalTool:
  """A tool and the sentences in which people ask for it.

  Attributes:
    name: the tool's name.
    description: the tool's description.
    arguments: in the order of the schema.
    near: names of tools that sound near and cannot do what this one does.
    requests: its sentences by kind.
    given: the tool as the policy sees it, where that is more than the fields above say.
  """

  name: str
  description: str
  arguments: Sequence[Argument]
  near: Sequence[str]
  requests: Mapping[Kind, Sequence[Sentence]]
  given: ToolSpec | None = None

  @classmethod
  def read(cls, table: Mapping[str, Any]) -> "NaturalTool":
    """Reads a tool's table.

    Raises:
      ValueError: a sentence gives an argument that is none, or one without values, lacks a
        required one, or lacks none where one is to be missing.
    """
    given = table["requests"]
    refuse = given.get("refuse", ())
    requests: dict[Kind, list[Sentence]] = {}
    for kind in KINDS:
      entries = given.get(kind, [entry for entry in refuse if entry["why"] == kind])
      requests[kind] = [Sentence.read(entry) for entry in entries]
    arguments = [Argument.read(argument) for argument in table["arguments"]]
    tool = cls(table["name"], table["description"], arguments, table.get("near", ()), requests)
    for kind, sentences in requests.items():
      for sentence in sentences:
        if problem := tool._problem(kind, sentence):
          raise ValueError(f"{tool.name}: {problem} in {kind}: {sentence.text}")
    return tool

  @cached_property
  def by_name(self) -> Mapping[str, Argument]:
    """The arguments by name."""
    return {argument.name: argument for argument in self.arguments}

  @cached_property
  def spec(self) -> ToolSpec:
    """The tool as the policy sees it."""
    if self.given is not None:
      return self.given
    return self._spec_of(self.arguments)

  def offered(
    self, rng: random.Random, mentioned: Collection[str], hidden_share: float
  ) -> ToolSpec:
    """The tool without some of the optional arguments that are not mentioned.

    Args:
      rng: draws which.
      mentioned: names of arguments that stay.
      hidden_share: of the others that are optional. A schema that was given stays whole.
    """
    if self.given is not None:
      return self.given
    stays = lambda a: a.required or a.name in mentioned or rng.random() >= hidden_share
    return self._spec_of([argument for argument in self.arguments if stays(argument)])

  def _spec_of(self, arguments: Sequence[Argument]) -> ToolSpec:
    properties = {argument.name: dict(argument.schema) for argument in arguments}
    required = [argument.name for argument in arguments if argument.required]
    parameters = {"type": "object", "properties": properties, "required": required}
    return ToolSpec(self.name, self.description, parameters)

  @cached_property
  def schema_text(self) -> str:
    """The tool as a prompt shows it."""
    return json.dumps(self.spec.to_json(), ensure_ascii=False)

  def missing_in(self, sentence: Sentence) -> list[Argument]:
    """The required arguments that a sentence does not give."""
    return [a for a in self.arguments if a.required and a.name not in sentence.names]

  def part(self, held_out: bool) -> "NaturalTool":
    """The same tool with the sentences kept for `seen`, or with all others."""
    text = lambda sentence: sentence.text
    requests = {kind: part_of(of, held_out, text) for kind, of in self.requests.items()}
    return dataclasses.replace(self, requests=requests)

  def _problem(self, kind: Kind, sentence: Sentence) -> str:
    if unknown := sentence.names - self.by_name.keys():
      return f"unknown argument {', '.join(sorted(unknown))}"
    silent = [name for name in SLOT.findall(sentence.text) if not self.by_name[name].values]
    if silent:
      return f"no values for {silent[0]}"
    missing = [argument.name for argument in self.missing_in(sentence)]
    if kind in ("execute", "orders") and missing:
      return f"required {missing[0]} is missing"
    if kind == "clarify" and not missing:
      return "nothing is missing"
    if kind == "clarify" and any(not self.by_name[name].ask for name in missing):
      return f"no way to ask for {missing[0]}"
    return ""


def part_of(items: Sequence[Item], held_out: bool, key: Callable[[Item], str]) -> list[Item]:
  """One item in `HELD_OUT_PART`, and at least one of several, or all others, by a hash of its key.

  Args:
    items: what to part, in the order of the result.
    held_out: which of the two parts.
    key: an item's text; no two may share one.
  """
  digest = lambda item: hashlib.sha256(key(item).encode()).hexdigest()
  number = max(1, round(len(items) / HELD_OUT_PART)) if len(items) > 1 else 0
  kept = {key(item) for item in sorted(items, key=digest)[:number]}
  return [item for item in items if (key(item) in kept) == held_out]


@dataclass(frozen=True)
class Phrases:
  """What is no tool's own.

  Attributes:
    system: wordings of the system message by style; `system` ones have the schemas at {tools}.
    before: sentences without any value that may stand before a request.
    after: the same, after it.
    joiners: what joins the next order, at {}, to the one before.
    wishes: requests that no tool grants.
    harm: harmful requests.
    no_tool: right answers to what no tool on offer can do.
    wont: right answers to what is harmful.
  """

  system: Mapping[Style, Sequence[str]]
  before: Sequence[str]
  after: Sequence[str]
  joiners: Sequence[str]
  wishes: Sequence[str]
  harm: Sequence[str]
  no_tool: Sequence[str]
  wont: Sequence[str]

  @classmethod
  def read(cls, asset: Mapping[str, Any]) -> "Phrases":
    """Reads a file of phrases."""
    of_style = lambda style: [entry["text"] for entry in asset["system"] if entry["style"] == style]
    context, answers = asset["context"], asset["answers"]
    return cls(
      system={"tools": of_style("tools"), "system": of_style("system")},
      before=context["before"],
      after=context["after"],
      joiners=context["joiners"],
      wishes=asset["wishes"]["texts"],
      harm=asset["harm"]["texts"],
      no_tool=answers["no_tool"],
      wont=answers["harm"],
    )


def read_tools(name: str) -> tuple[NaturalTool, ...]:
  """The tools of one file of `assets/synthetic/natural`."""
  return checked(map(NaturalTool.read, read_asset(f"synthetic/natural/{name}")["tools"]))


def read_phrases(name: str) -> Phrases:
  """The phrases of one file of `assets/synthetic/natural`."""
  return Phrases.read(read_asset(f"synthetic/natural/{name}"))


def checked(tools: Iterable[NaturalTool]) -> tuple[NaturalTool, ...]:
  """The same tools.

  Raises:
    ValueError: two share a name, or one refers to a tool that is not among them.
  """
  tools = tuple(tools)
  names = [tool.name for tool in tools]
  for tool in tools:
    if names.count(tool.name) > 1:
      raise ValueError(f"{tool.name}: two tools of that name")
    for other in (*tool.near, *(name for s in tool.requests["no_tool"] for name in s.unless)):
      if other not in names:
        raise ValueError(f"{tool.name}: there is no tool {other!r} in the same file")
  return tools
