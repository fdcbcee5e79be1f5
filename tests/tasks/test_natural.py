from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tomllib
from collections import Counter

import pytest

from grpo_jax.rewards import score
from grpo_jax.tasks.rows import read_row
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.sources import read_tasks
from grpo_jax.tasks.synthetic import natural, natural_tools
from grpo_jax.tasks.synthetic.natural import (
  NATURAL_SIZES,
  NATURAL_SPLITS,
  generate_natural,
  inventory,
  misspelled,
)
from grpo_jax.tasks.synthetic.natural_tools import (
  SLOT,
  Argument,
  NaturalTool,
  Phrases,
  Value,
  checked,
  part_of,
)

TABLE = """
[[tools]]
name = "reserve_table"
description = "Reserve a table at a restaurant."
near = ["findRestaurant"]
[[tools.arguments]]
name = "restaurant"
type = "string"
required = true
values = ["Golden Lotus", {is = "Chez Nadine", said = ['"Chez Nadine"'], accept = ["Nadine"]}]
ask = ["Which restaurant should I book?"]
[[tools.arguments]]
name = "party_size"
type = "integer"
required = true
values = [{is = 2, said = ["two", "2"]}, {is = 4, said = ["four"]}]
ask = ["How many people will there be?", "I need the number of people."]
[[tools.arguments]]
name = "seating"
type = "string"
enum = ["indoor", "outdoor"]
values = ["indoor", {is = "outdoor", said = ["outside"]}]
[tools.requests]
execute = [
  "Could you get us a table at {restaurant} for {party_size}?",
  {text = "The terrace of {restaurant}, we are two", with = {party_size = 2, seating = "outdoor"}},
]
orders = ["book a table for {party_size} at {restaurant}", "get {restaurant} for {party_size}"]
clarify = ["I need a table at {restaurant} tonight.", "Please book a table."]
refuse = [
  {text = "Cancel my booking at {restaurant}.", why = "no_tool", unless = ["findRestaurant"]},
  {text = "Which dishes does {restaurant} have?", why = "no_tool"},
  {text = "Fill {restaurant} with fake names.", why = "harm"},
]

[[tools]]
name = "findRestaurant"
description = "Find restaurants."
[[tools.arguments]]
name = "cuisines"
type = "array"
items = "string"
values = [["Thai", "Ethiopian"], {is = ["Greek"], said = ["Greek"]}]
[[tools.arguments]]
name = "maxPrice"
type = "number"
values = [25.0, 12.5]
[tools.requests]
execute = ["Where can I eat {cuisines} food?", "eat below {maxPrice} euros"]
orders = ["look for {cuisines} food", "look for food below {maxPrice} euros"]
refuse = [{text = "Order {cuisines} food.", why = "no_tool"}, {text = "Rate it.", why = "no_tool"}]
"""
PHRASES = """
[[system]]
style = "tools"
text = ""
[[system]]
style = "tools"
text = "Call a tool, ask or decline."
[[system]]
style = "system"
text = 'Functions:\\n{tools}\\nAnswer [{\"name\": \"tool\", \"arguments\": {\"a\": 1}}].'
[context]
before = ["Hello there!", "Morning"]
after = ["Thanks a lot", "cheers"]
joiners = [", and {}", ". Also, {}", ". {}"]
[wishes]
texts = ["Tell me a story.", "what is love", "paint my fence"]
[harm]
texts = ["Help me rob a bank.", "How can I hurt him?"]
[answers]
no_tool = ["I can't do that with the tools I have."]
harm = ["I can't help with that."]
"""


@pytest.fixture
def small(monkeypatch):
  """Every file of the register replaced by two tools and a few phrases."""

  phrases, table = tomllib.loads(PHRASES), tomllib.loads(TABLE)
  phrases["wishes"]["texts"] += [f"paint {i} fences" for i in range(60)]
  phrases["harm"]["texts"] += [f"Help me rob {i} banks." for i in range(60)]
  (restaurants, sizes, _), (cuisines, prices) = (tool["arguments"] for tool in table["tools"])
  restaurants["values"] += [f"Place {i}" for i in range(40)]
  sizes["values"] += range(5, 40)
  cuisines["values"] += [[f"cuisine {i}"] for i in range(60)]
  prices["values"] += range(30, 60)

  def read_asset(name: str):
    return phrases if "phrases" in name else table

  monkeypatch.setattr(natural_tools, "read_asset", read_asset)
  inventory.cache_clear()
  yield natural_tools.read_tools("train")
  inventory.cache_clear()


def executed(rows) -> list[ToolTask]:
  return [task for task in map(read_row, rows) if task.behavior == "execute"]


@pytest.mark.parametrize("split", NATURAL_SPLITS)
def test_every_row_is_a_task_and_situations_have_exactly_their_shares(small, split):
  rows = generate_natural(0, split, 100)
  tasks = [read_row(json.loads(json.dumps(row))) for row in rows]
  shares = natural.WARM_SITUATIONS if split == "warm" else natural.SITUATIONS
  assert Counter(task.extra["situation"] for task in tasks) == shares
  shares = (40, 40, 20) if split == "warm" else (60, 25, 15)
  behaviors = dict(zip(("execute", "clarify", "refuse"), shares, strict=True))
  assert Counter(task.behavior for task in tasks) == behaviors
  assert len({task.id for task in tasks}) == 100
  for task in tasks:
    offered = {tool.name for tool in task.tools}
    assert offered and len(task.calls) == (2 if task.extra["situation"] == "parallel" else 1) * (
      task.behavior == "execute"
    )
    none = task.extra["situation"] in ("unfit", "wish")
    assert task.tool_name == "none" if none else task.tool_name in offered
    assert task.native_tools == (task.extra["style"] == "tools")


def test_calls_hold_the_values_behind_what_is_said_and_nothing_else(small):
  seen = Counter()
  for task in executed(generate_natural(0, "unseen", 1000)):
    for call, accepted in zip(task.calls, task.possible_answers, strict=True):
      assert accepted[call.name].keys() == call.arguments.keys()
      for name, value in call.arguments.items():
        assert accepted[call.name][name][0] == value
        seen[name, json.dumps(value)] += 1
      if call.arguments.get("restaurant") == "Chez Nadine":
        assert accepted[call.name]["restaurant"] == ["Chez Nadine", "Nadine"]
        assert '"chez nadine"' in task.request.lower()
      if call.arguments.get("seating"):
        assert call.arguments["party_size"] == 2 and "terrace" in task.request
  assert {name for name, _ in seen} == {
    "restaurant", "party_size", "seating", "cuisines", "maxPrice",
  }  # fmt: skip
  requests = " ".join(task.request for task in executed(generate_natural(0, "unseen", 1000)))
  assert "25 euros" in requests and "12.5 euros" in requests
  assert re.search(r"Thai(,| and) Ethiopian food", requests)


def test_clarify_lists_what_is_missing_and_asks_for_all_of_it(small):
  asks = {
    "restaurant": ["Which restaurant should I book?"],
    "party_size": ["How many people will there be?", "I need the number of people."],
  }
  found = set()
  for task in map(read_row, generate_natural(0, "unseen", 200)):
    if task.behavior == "clarify":
      found.add(task.missing)
      assert task.tool_name == "reserve_table"  # the other one has no required argument
      for name in task.missing:
        assert any(ask[1:] in task.answer for ask in asks[name])
  assert found == {("party_size",), ("restaurant", "party_size")}


def test_unfit_requests_are_offered_no_tool_that_could(small):
  for task in map(read_row, generate_natural(0, "unseen", 300)):
    offered = {tool.name for tool in task.tools}
    if task.extra["situation"] == "unfit":
      if "Cancel" in task.request:
        assert offered == {"reserve_table"}
      if re.search("(?i)table at|terrace", task.request):
        assert "reserve_table" not in offered
      if re.search("(?i)^eat below|eat .* food?", task.request):
        assert "findRestaurant" not in offered


def test_an_empty_wording_means_no_system_message(small):
  roles = Counter(
    tuple(message["role"] for message in row["prompt"]) for row in generate_natural(0, "train", 100)
  )
  assert set(roles) == {("user",), ("system", "user")}


def test_sentences_of_seen_are_kept_from_training_and_every_kind_has_one(small):
  for whole in small:
    train, seen = whole.part(held_out=False), whole.part(held_out=True)
    for kind in ("execute", "orders", "clarify", "no_tool", "harm"):
      texts = lambda tool, kind=kind: {sentence.text for sentence in tool.requests[kind]}
      assert texts(train) | texts(seen) == texts(whole) and not texts(train) & texts(seen)
      assert len(texts(seen)) == (len(texts(whole)) > 1)


def test_one_sentence_in_five_is_held_out():
  texts = [f"number {i}" for i in range(15)]
  kept = part_of(texts, held_out=True, key=str)
  assert len(kept) == 3 and len(part_of(texts, held_out=False, key=str)) == 12
  # The hash decides, not the place in the file.
  assert set(part_of(texts[::-1], held_out=True, key=str)) == set(kept)


def test_typos_change_one_word_and_no_slot():
  text = "Could you get us a table at {restaurant} for {party_size}?"
  changed = Counter()
  for seed in range(300):
    wrong = misspelled(random.Random(seed), text)
    assert SLOT.findall(wrong) == SLOT.findall(text)
    pairs = [(a, b) for a, b in zip(text.split(), wrong.split(), strict=True) if a != b]
    assert len(pairs) == 1 and pairs[0][0] in ("Could", "table")
    changed[pairs[0]] += 1
    assert pairs[0][1][0] == pairs[0][0][0]
  assert len(changed) > 12
  assert misspelled(random.Random(0), "at {restaurant}") == "at {restaurant}"


def test_surroundings_and_lower_case_come_as_often_as_they_should(small):
  rows = generate_natural(0, "unseen", 1000)
  joined = [  # orders are capitalized, unless the whole message is not
    row["prompt"][-1]["content"] for row in rows if row["extra_info"]["situation"] == "parallel"
  ]
  lowered = sum(request == request.lower() for request in joined)
  assert 0.06 * len(joined) < lowered < 0.20 * len(joined)
  context = sum(
    bool(re.search("(?i)^(hello there|morning)|(thanks a lot|cheers)$", r)) for r in joined
  )
  assert 0.18 * len(joined) < context < 0.40 * len(joined)
  assert not any(re.search(r"[a-z]( Thanks|Hello| cheers)", request) for request in joined)


def test_free_text_at_the_edge_of_a_message_gets_no_neighbor(small):
  for task in map(read_row, generate_natural(0, "unseen", 400)):
    if "get golden lotus for" not in task.request.lower():
      continue
    assert not re.search('(?i)(golden lotus|chez nadine"?)[.,] (thanks|cheers)', task.request)


@pytest.mark.parametrize(
  ("change", "problem"),
  [
    (("{restaurant} for {party_size}?", "{place} for {party_size}?"), "unknown argument place"),
    (("us a table at {restaurant} for {party_size}?", "{restaurant}"), "party_size is missing"),
    (("a table at {restaurant} tonight", "{restaurant} for {party_size}"), "nothing is missing"),
    (('near = ["findRestaurant"]', 'near = ["fly"]'), "no tool 'fly'"),
    (('ask = ["Which restaurant should I book?"]', ""), "no way to ask for restaurant"),
    (('name = "findRestaurant"', 'name = "reserve_table"'), "two tools of that name"),
  ],
)
def test_mistakes_in_a_tool_file_are_named(change, problem):
  asset = tomllib.loads(TABLE.replace(*change))
  with pytest.raises(ValueError, match=problem):
    checked(map(NaturalTool.read, asset["tools"]))


def test_values_are_said_as_they_are_listed():
  rng = random.Random(0)
  assert Value.read({"is": 2, "said": ["a pair"]}).spoken(rng) == "a pair"
  assert [Value(v).spoken(rng) for v in (3, 3.0, 2.5, "x", ["x"])] == ["3", "3", "2.5", "x", "x"]
  argument = Argument("size", {}, True, [Value(2, ("two",), (2.0,))], ())
  assert argument.find(2).accept == (2.0,) and argument.find(3) == Value(3)
  assert Phrases.read(tomllib.loads(PHRASES)).system["tools"][0] == ""


def test_impossible_demands_are_refused_in_one_sentence(small, monkeypatch):
  with pytest.raises(ValueError, match="expected one of warm, train, seen, unseen"):
    generate_natural(0, "test")
  with pytest.raises(ValueError, match="at least 1"):
    generate_natural(0, "train", 0)
  monkeypatch.setattr(natural, "MAX_DRAWS", 1)
  with pytest.raises(ValueError, match="cannot make 3000 distinct tasks"):
    generate_natural(0, "unseen", 3000)
  with pytest.raises(ValueError, match="natural:test: expected natural: and one of warm"):
    read_tasks("natural:test", 0)


def test_source_reads_what_the_generator_makes(small):
  tasks = read_tasks("natural:seen", 3)
  assert tasks == [ToolTask.from_row(row) for row in generate_natural(3, "seen")]
  assert len(tasks) == NATURAL_SIZES["seen"] and tasks != read_tasks("natural:seen", 4)


# --- the register itself -------------------------------------------------------------------------

TOOLS = {name: natural_tools.read_tools(name) for name in ("warm", "train", "unseen")}
PHRASES_OF = {
  name: natural_tools.read_phrases(name) for name in ("phrases_train", "phrases_held_out")
}
TASKS = {split: [read_row(row) for row in generate_natural(0, split)] for split in NATURAL_SPLITS}


def normalized(text: str) -> str:
  """The words of a sentence, lower case, with a mark where a value stands."""
  return re.sub(r"[^\w<>]+", " ", SLOT.sub(" <> ", text).lower()).strip()


def sentences(tools) -> list[str]:
  return [normalized(s.text) for tool in tools for kind in tool.requests.values() for s in kind]


def phrases(name: str) -> list[str]:
  """Everything that prompts may hold: not the answers, for which English has few short forms."""
  found = PHRASES_OF[name]
  texts = [*found.before, *found.after, *found.joiners, *found.wishes, *found.harm]
  return [normalized(text) for text in (*texts, *(t for of in found.system.values() for t in of))]


def sequences(texts, length: int) -> set[tuple[str, ...]]:
  """Runs of so many words, at least half of them words and not values."""
  runs = set()
  for words in map(str.split, texts):
    runs |= {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
  return {run for run in runs if run.count("<>") * 2 <= length}


def test_held_out_tools_and_phrases_are_not_those_of_training():
  trained = (*TOOLS["train"], *TOOLS["warm"])
  assert not {tool.name for tool in TOOLS["unseen"]} & {tool.name for tool in trained}
  assert not {tool.name for tool in TOOLS["warm"]} & {tool.name for tool in TOOLS["train"]}
  descriptions = lambda tools: {normalized(tool.description) for tool in tools}
  assert not descriptions(TOOLS["unseen"]) & descriptions(trained)
  known = {*sentences(trained), *phrases("phrases_train")}
  held_out = {*sentences(TOOLS["unseen"]), *phrases("phrases_held_out")}
  assert not {text for text in known & held_out if re.search(r"\w", text)}  # "{city} {day}" is none
  assert len(sequences(known, 6) & sequences(held_out, 6)) <= 1  # "I'd like to see the"


def test_sentences_of_seen_share_little_with_those_of_training():
  shared = set()
  for whole in TOOLS["train"]:
    train, seen = (sentences([whole.part(held_out)]) for held_out in (False, True))
    assert not set(train) & set(seen)
    shared |= sequences(train, 6) & sequences(seen, 6)
    assert 0.18 * len(train) < len(seen) < 0.32 * len(train)
  assert len(shared) <= 3


def test_there_are_many_tools_and_sentences():
  assert sum(map(len, TOOLS.values())) >= 40
  for name, tools in TOOLS.items():
    count = lambda *kinds, tools=tools: sum(len(t.requests[k]) for t in tools for k in kinds)
    assert len(tools) >= 14 and count("execute") >= 100
    assert count("clarify") >= 30 and count("no_tool", "harm") >= 30, name
    for tool in tools:
      assert len(tool.requests["execute"]) >= 8 and len(tool.requests["orders"]) >= 2, tool.name
      asked = {a.name for s in tool.requests["clarify"] for a in tool.missing_in(s)}
      assert asked == {a.name for a in tool.arguments if a.required}, tool.name
      for argument in tool.arguments:
        kind, schema = argument.schema["type"], argument.schema
        assert kind in ("boolean",) or "enum" in schema or len(argument.values) >= 6
        types = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
        for value in (v for found in argument.values for v in (found.value, *found.accept)):
          items = value if kind == "array" else [value]
          assert all(isinstance(item, types.get(kind, str)) for item in items)
          assert kind == "boolean" or not any(isinstance(item, bool) for item in items)
          assert "enum" not in schema or value in schema["enum"]


@pytest.mark.parametrize("split", NATURAL_SPLITS)
def test_the_right_text_scores_full_marks_and_that_of_another_behavior_does_not(split):
  answer = {task.behavior: task.answer for task in TASKS[split]}
  for task in TASKS[split]:
    if task.behavior == "execute":
      continue
    other = answer["refuse" if task.behavior == "clarify" else "clarify"]
    assert score(task.answer, task, parse="auto").total == 1.0, task.answer
    assert score(other, task, parse="auto").total < 1.0
    assert score(answer["execute"], task, parse="auto").total == 0.0


@pytest.mark.parametrize("split", NATURAL_SPLITS)
def test_the_right_call_scores_full_marks_and_a_spoiled_one_does_not(split):
  rng = random.Random(0)
  for task in TASKS[split]:
    if task.behavior != "execute":
      continue
    assert score(task.answer, task, parse="auto").total == 1.0
    spoiled = [call.to_json() for call in task.calls]
    call = rng.choice(spoiled)
    if call["arguments"]:
      name = rng.choice(list(call["arguments"]))
      value = call["arguments"].pop(name)
      if rng.random() < 0.5:
        wrong = {bool: not value, str: "x", list: ["x"]}
        call["arguments"][name] = wrong.get(type(value), -1)
    else:
      call["arguments"]["else"] = 1
    assert score(json.dumps(spoiled), task, parse="auto").total < 1.0


@pytest.mark.parametrize("split", NATURAL_SPLITS)
def test_every_value_of_a_call_is_said_in_its_request(split):
  """A value in one of its spoken forms, or in words of the sentence that say it."""
  tools = {tool.name: tool for tool in inventory(split)[0]}
  said_by_words = total = 0
  for task in TASKS[split]:
    for call in task.calls:
      tool = tools[call.name]
      for name, wanted in call.arguments.items():
        value = tool.by_name[name].find(wanted)
        forms = value.said or [
          str(form) for form in {value.spoken(random.Random(i)) for i in (0, 1)}
        ]
        total += 1
        if not any(form.lower() in task.request.lower() for form in forms):
          given = [s.given.get(name) for s in tool.requests["execute"]]
          assert wanted in given, task.request
          said_by_words += 1
  assert said_by_words < 0.2 * total


def test_shares_of_styles_tools_and_surroundings():
  tasks = TASKS["train"]
  assert len(tasks) == 1500
  assert 0.8 < sum(task.native_tools for task in tasks) / 1500 < 0.9
  shown = Counter(len(task.tools) for task in tasks)
  assert shown[1] > 350 and shown[2] > 350 and shown[3] > 300 and max(shown) >= 4
  context = PHRASES_OF["phrases_train"]
  starts = tuple(text.lower() for text in context.before)
  ends = tuple(text.lower().rstrip(".!?") for text in context.after)
  surrounded = sum(
    text.startswith(starts) or text.rstrip(".!?").endswith(ends)
    for text in (task.request.lower() for task in tasks)
  )
  assert 0.22 < surrounded / 1500 < 0.32
  executed = Counter(task.tool_name for task in tasks if task.behavior == "execute")
  assert set(executed) == {tool.name for tool in TOOLS["train"]}
  assert max(executed.values()) - min(executed.values()) <= 2


def test_same_seed_gives_the_same_rows_in_another_process():
  script = (
    "import hashlib, json; from grpo_jax.tasks.synthetic.natural import generate_natural; "
    "print(hashlib.sha256(json.dumps(generate_natural(3, 'seen', 60)).encode()).hexdigest())"
  )
  digests = {
    subprocess.run(
      [sys.executable, "-c", script],
      env={**os.environ, "PYTHONHASHSEED": hash_seed},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for hash_seed in ("1", "2")
  }
  assert len(digests) == 1
  assert generate_natural(3, "seen", 60) != generate_natural(4, "seen", 60)


def test_a_schema_leaves_out_some_optional_arguments_and_none_that_a_call_gives():
  whole = {tool.name: tool.spec for tool in natural.inventory("train")[0]}
  optional, shown = 0, 0
  for task in TASKS["train"]:
    for tool in task.tools:
      every = set(whole[tool.name].properties) - set(tool.required)
      given = {name for call in task.calls if call.name == tool.name for name in call.arguments}
      assert set(tool.required) == set(whole[tool.name].required)
      assert given <= set(tool.properties) <= set(whole[tool.name].properties)
      optional += len(every - given)
      shown += len(set(tool.properties) & every - given)
  assert 0.45 < shown / optional < 0.6
