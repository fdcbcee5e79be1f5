"""The corpus of made-up tools: reproducible, answerable from its prompt, and of known shares."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import product

import pytest

from grpo_jax.tasks.synthetic.procedural import DEMONSTRATED, SITUATIONS, Words, demonstrations

# Many words, so that no two tools of a set are called alike.
MADE_UP = ["".join(letters) for letters in product("bdfgk", "aeiou", "lmnrt", "aeiou")]
WORDS = Words(verbs=MADE_UP[0::3], nouns=MADE_UP[1::3], adjectives=MADE_UP[2::3])
GROUP = 6


@pytest.fixture(scope="module")
def corpus():
  return [demonstrations(WORDS, 0, index, GROUP) for index in range(500)]


def calls_of(answer):
  return json.loads(answer) if answer.startswith("[") else None


def shown(answer):
  if calls_of(answer) is not None:
    return "execute"
  return "refuse" if answer.startswith("Sorry") else "clarify"


def test_a_set_is_a_function_of_seed_and_index(corpus):
  assert demonstrations(WORDS, 0, 7, GROUP) == corpus[7]
  assert demonstrations(WORDS, 1, 7, GROUP) != corpus[7] != corpus[8]
  assert len({str(tools) for tools, _ in corpus}) == len(corpus)
  for tools, made in corpus:
    assert 1 <= len(tools) <= 3 and len(made) == GROUP


def test_tools_are_made_of_the_inventory_alone(corpus):
  inventory = {*WORDS.verbs, *WORDS.nouns, *WORDS.adjectives}
  for tools, _ in corpus:
    for tool in tools:
      names = [tool.name, *tool.parameters["properties"]]
      assert {part for name in names for part in name.split("_")} <= inventory
      assert tool.required and set(tool.required) <= set(tool.parameters["properties"])
      described = set(re.findall("[a-z]+", tool.description.lower()))
      assert described <= inventory | {"a", "the", "for", "by", "of", "get"}


def test_situations_and_behaviours_have_their_shares(corpus):
  made = [one for _, group in corpus for one in group]
  situations = Counter(one.situation for one in made)
  for situation, share in SITUATIONS.items():
    assert situations[situation] / len(made) == pytest.approx(share, abs=0.03)
    answers = Counter(shown(one.answer) for one in made if one.situation == situation)
    for behavior, wanted in DEMONSTRATED[situation].items():
      # Four standard deviations of a share among 300 demonstrations, the fewest of a situation.
      assert answers[behavior] / situations[situation] == pytest.approx(wanted, abs=0.12)


def test_shown_calls_are_right_and_can_be_read_from_the_request(corpus):
  complete = 0
  for tools, made in corpus:
    by_name = {tool.name: tool for tool in tools}
    for one in made:
      if calls_of(one.answer) is None:
        continue
      (call,) = calls_of(one.answer)
      tool = by_name[call["name"]]  # a tool on offer, even where it does not fit
      properties = tool.parameters["properties"]
      assert set(call["arguments"]) <= set(properties)
      if one.situation == "complete":
        complete += 1
        assert set(tool.required) <= set(call["arguments"])
      if one.situation == "missing":
        assert set(tool.required) - set(call["arguments"])  # called all the same
      if one.situation not in ("complete", "missing"):
        continue
      for name, value in call["arguments"].items():
        schema = properties[name]
        for text in value if isinstance(value, list) else [value]:
          said = json.dumps(text) if isinstance(text, bool) else str(text)
          assert said.lower() in one.request.lower(), (said, one.request)
        if "enum" in schema:
          assert value in schema["enum"]
        kinds = {"integer": int, "number": (int, float), "boolean": bool, "array": list}
        assert isinstance(value, kinds.get(schema["type"], str))
  assert complete > 800


def test_questions_ask_for_what_is_missing(corpus):
  asked = 0
  for tools, made in corpus:
    names = {name.replace("_", " ") for tool in tools for name in tool.parameters["properties"]}
    for one in made:
      if shown(one.answer) == "clarify":
        asked += 1
        assert one.answer.endswith("?")
        assert any(name in one.answer for name in names)
  assert asked > 200
