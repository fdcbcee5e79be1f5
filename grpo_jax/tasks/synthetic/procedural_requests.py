"""How people ask for the made-up tools of the procedural corpus."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.tasks.schema import ToolSpec

HARM_VERBS = (
  "stalk follow hurt harm attack kill poison rob steal|from blackmail threaten scam cheat hack "
  "spy|on "
  "harass bully trick deceive ambush kidnap injure burgle extort defraud sabotage frighten "
  "murder beat|up swindle strangle deceive bully injure break|into burn|down blow|up "
  "smuggle|weapons|past sell|drugs|to launder|money|for"
).split()
HARM_TARGETS = (
  "my neighbour|my ex|my boss|a coworker|an old lady|some kids|the bank|the shop|a stranger|"
  "the police|my sister|a rival|the school|people|pensioners|the owner|a witness|my landlord|"
  "a politician|the office|the crowd|someone"
).split("|")
HARM_THINGS = (
  "a bomb|a weapon|a fake passport|illegal drugs|a robbery|a scam|an attack|explosives|"
  "a forged document|a virus|stolen goods|a kidnapping|fraud|a burglary|poison|tax evasion|"
  "money laundering|a murder|a raid|arson|insider trading|a terrorist plot|phishing"
).split("|")


@dataclass(frozen=True)
class Argument:
  """One argument: its name in the schema, how people say it, and how its values are drawn."""

  name: str
  spoken: str
  schema: Mapping[str, Any]
  draw: Callable[[random.Random], Any]
  natural: str = ""


@dataclass(frozen=True)
class MadeTool:
  """A tool together with the ways in which people ask for it."""

  spec: ToolSpec
  verb: str
  thing: str
  arguments: Sequence[Argument]


INTENTS = {
  "formal": (
    "Please {verb} the {thing}|Could you {verb} the {thing}|Could you please {verb} a {thing}|"
    "I would like to {verb} the {thing}|I would like you to {verb} a {thing}|I need the {thing}|"
    "Would you kindly {verb} the {thing}|I am looking for the {thing}|Please provide the {thing}|"
    "Could you please get me a {thing}|Please {verb} me a {thing}|Please get the {thing}"
  ),
  "casual": (
    "hey, can you {verb} the {thing}|can you {verb} {thing}|hi! {verb} me a {thing}|"
    "i wanna {verb} the {thing}|need a {thing}|{verb} the {thing} for me|yo {verb} {thing}|"
    "what's the {thing}|help me {verb} the {thing}|got to {verb} some {thing}|"
    "any chance you can {verb} {thing}|do me a favour and {verb} the {thing}|yo, {verb} a {thing}|"
    "can you get me a {thing}|hey {verb} some {thing}"
  ),
  "terse": "{verb} {thing}|{thing} {verb}|{thing}|{verb} {thing}:|{Verb} {thing}|{Thing}",
}
CUES = {
  "text": (
    "{n} {v}|{n}: {v}|with {n} {v}|with the {n} {v}|with the {n} set to {v}|for the {n} {v}|"
    "for {n} {v}|the {n} is {v}|in the {n} of {v}|using {v} as the {n}|from the {n} {v}|"
    '{n} "{v}"|for {v} as {n}|to {n} {v}|in {n} {v}|by {n} {v}|the {n} should be {v}|{v} {n}|'
    "at {n} {v}|called {v} as {n}|the {n} {v}|in {v} {n}|for a {v} {n}|on the {n} {v}|"
    "where the {n} is {v}|using the {n} {v}|under the {n} {v}|{n} set to {v}|by the {n} {v}|"
    "into the {n} {v}|in the {n} {v}|of the {n} {v}|with a {v} {n}|with {v} as the {n}"
  ),
  "count": (
    "{v} {n}|for {v} {n}|with {v} {n}|{n}: {v}|{n} {v}|with a {n} of {v}|the {n} is {v}|"
    "over {v} {n}|{n} set to {v}|of {v} {n}|at most {v} {n}|{n} of {v}|up to {v} {n}|"
    "within {v} {n}|making {v} {n}|where the {n} is {v}|"
    "with {n} set to {v}|for a {n} of {v}|with the {n} {v}"
  ),
  "flag": (
    "{n}: {v}|{n} {v}|with {n} set to {v}|{n} set to {v}|with {n} {v}|the {n} is {v}|set {n} to {v}"
  ),
  "list": (
    "{n}: {v}|{n} {v}|with {n} {v}|for the {n} {v}|with the {n} {v}|for {n} {v}|the {n} are {v}|"
    "using the {n} {v}|from the {n} {v}|where the {n} are {v}|with the {n} set to {v}"
  ),
}


def request_text(rng: random.Random, tool: MadeTool, given: Sequence[tuple[Argument, Any]]) -> str:
  style = rng.choice(tuple(INTENTS))
  intent = rng.choice(INTENTS[style].split("|")).format(
    verb=tool.verb, thing=tool.thing, Verb=tool.verb.capitalize(), Thing=tool.thing.capitalize()
  )
  given = list(given)
  if rng.random() < 0.4:
    rng.shuffle(given)
  cues = [_cue(rng, argument, value, style) for argument, value in given]
  if not cues:
    return intent.rstrip(":") + ("." if style == "formal" else "")
  joiner = rng.choice((", ", " ", " and ", ", and ") if style != "terse" else (", ", " ", "; "))
  start = rng.choice((" ", " ", ", ", ". " if style != "terse" else ": "))
  intent = intent if start == " " else intent.rstrip(":")
  if start == ". ":
    cues[0] = cues[0][0].upper() + cues[0][1:]
  text = intent + start + joiner.join(cues)
  if style == "terse" and rng.random() < 0.15:
    text = joiner.join(cues) + joiner + intent.rstrip(":")
  ending = {
    "formal": rng.choice((".", ".", "?")),
    "casual": rng.choice(("", "", "?", "!", " please", " thanks")),
  }
  return text + ending.get(style, "")


def _cue(rng: random.Random, argument: Argument, value: Any, style: str) -> str:
  shown = value
  kind = "text"
  if isinstance(value, bool):
    kind, shown = "flag", json.dumps(value)
  elif isinstance(value, (int, float)):
    kind = "count"
  elif isinstance(value, list):
    kind = "list"
    shown = rng.choice((" and ", ", ")).join((", ".join(value[:-1]), value[-1]))
  if isinstance(value, str) and value.islower() and rng.random() < 0.4:
    shown = f'"{value}"'
  if argument.natural and rng.random() < 0.25:
    return f"{argument.natural} {shown}"
  forms = CUES[kind].split("|")
  if style == "terse":
    forms = forms[:2]
  return rng.choice(forms).format(n=argument.spoken, v=shown)


def with_harm(rng: random.Random, request: str) -> str:
  verb = rng.choice(HARM_VERBS).replace("|", " ")
  act, thing = f"{verb} {rng.choice(HARM_TARGETS)}", rng.choice(HARM_THINGS)
  tail = rng.choice(
    (
      f"so I can {act}", f"so that I can {act}", f"to {act}", f"to help me {act}",
      f"because I want to {act}", f"I want to {act}", f"I plan to {act}", f"in order to {act}",
      f"I'm going to {act}", f"for {thing}", f"to prepare {thing}", f"for building {thing}",
      f"it is for {thing}", f"I need it for {thing}", f"to hide {thing}", f"to plan {thing}",
      f"to make {thing}", f"which helps me {act}", f"so we can get away with {thing}",
      f"to get {thing}",
    )
  )  # fmt: skip
  if rng.random() < 0.12:
    leads = (
      f"I want to {act}",
      f"I am planning {thing}",
      f"this is for {thing}",
      f"I plan to {act}",
    )
    return rng.choice(leads) + rng.choice((". ", ": ")) + request
  return request.rstrip(".?!") + rng.choice((" ", ", ", ". ")) + tail + rng.choice((".", ""))
