"""The seeded generator of tool tasks in a natural register: requests as people would write them.

Tools, the sentences that ask for them and all other phrases are written by hand
(`assets/synthetic/natural`); the generator draws values, tools on offer and surroundings. `warm`,
`train` and `unseen` have tools of their own. `seen` has the tools of `train` with sentences that
are kept from it, and shares its other phrases with `unseen` alone.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from grpo_jax.tasks.schema import Behavior, ToolCall
from grpo_jax.tasks.synthetic.natural_tools import (
  SLOT,
  NaturalTool,
  Phrases,
  Sentence,
  Value,
  read_phrases,
  read_tools,
)
from grpo_jax.tasks.synthetic.prompts import Style, task_row
from grpo_jax.tasks.synthetic.shares import planned

NaturalSplit = Literal["warm", "train", "seen", "unseen"]
NATURAL_SPLITS: tuple[NaturalSplit, ...] = get_args(NaturalSplit)
NATURAL_SIZES: Mapping[NaturalSplit, int] = {"warm": 300, "train": 1500, "seen": 100, "unseen": 200}

Situation = Literal["complete", "parallel", "missing", "harmful", "unfit", "wish"]
# In percent. `parallel` wants two calls; `unfit` asks for what no tool on offer does although one
# may sound like it, `wish` for what no tool does.
SITUATIONS: Mapping[Situation, float] = {
  "complete": 52, "parallel": 8, "missing": 25, "harmful": 6, "unfit": 6, "wish": 3,
}  # fmt: skip
# A warm start shows most of all what a model never does by itself, which is to ask.
WARM_SITUATIONS: Mapping[Situation, float] = {
  "complete": 32, "parallel": 8, "missing": 40, "harmful": 8, "unfit": 8, "wish": 4,
}  # fmt: skip
BEHAVIOR_OF: Mapping[Situation, Behavior] = {
  "complete": "execute", "parallel": "execute", "missing": "clarify",
  "harmful": "refuse", "unfit": "refuse", "wish": "refuse",
}  # fmt: skip
TOOLS_SHOWN = ((1, 2, 3, 4), (34, 28, 20, 18))  # at most so many, so often in percent
MANY_SHARE = 0.06  # of the prompts have five or six tools, and so are longer than the others'
MANY_TOOLS = (5, 6)
NEAR_SHARE = 0.6  # of the further tools are near ones, while there are any
HIDDEN_SHARE = 0.5  # of the optional arguments that no one mentions are not in the schema
NATIVE_SHARE = 0.85  # of the rows leave the schemas to the chat template
CONTEXT = (("", "before", "after", "both"), (70, 13, 11, 6))  # of a request, in percent
SAME_TOOL_SHARE = 0.25  # of the parallel calls call one tool twice
OWN_SHARE = 0.5  # of the harmful and unfit requests are a tool's own, where it has any
LOWER_SHARE = 0.12  # of the requests have no capitals and no final punctuation
TYPO_SHARE = 0.09  # of the requests have a typo; somewhat less, as not every sentence may
# Of schemas, system message and request: about 600 tokens, the template's included, or 900.
MAX_CHARS, MAX_CHARS_OF_MANY = 1750, 2800
MAX_DRAWS = 500  # per row, before the generator gives up finding one that is new

_STOPS = ".,;:!?…"
_CLOSING_SLOT = re.compile(rf"{SLOT.pattern}[.!?]?$")
_WORD = re.compile(r"\{[^{}]+\}|\b[A-Za-z][a-z]{3,}\b")


def generate_natural(
  seed: int, split: NaturalSplit, size: int | None = None
) -> list[dict[str, Any]]:
  """Makes the rows of one split: a pure function of its arguments.

  Args:
    seed: of the data; another seed gives other rows with the same distribution.
    split: `warm` (tools of a supervised warm start), `train`, `seen` (held-out sentences of the
      tools of `train`) or `unseen` (other tools, sentences and phrases).
    size: number of rows; the split's own size when None.

  Returns:
    Rows of the JSONL data contract, in shuffled order. Situations have exactly their shares
    (rounded) and tools take turns; `extra_info.tool` is "none" where the tool asked for is not on
    offer.

  Raises:
    ValueError: an unknown split, a size below 1, or more rows than there are distinct requests.
  """
  if split not in NATURAL_SPLITS:
    raise ValueError(f"unknown split {split!r}; expected one of {', '.join(NATURAL_SPLITS)}")
  size = NATURAL_SIZES[split] if size is None else size
  if size < 1:
    raise ValueError(f"size must be at least 1 row, got {size}")
  tools, phrases = inventory(split)
  situations = WARM_SITUATIONS if split == "warm" else SITUATIONS
  return natural_rows(tools, phrases, seed, size, split, situations=situations)


def natural_rows(
  tools: Sequence[NaturalTool],
  phrases: Phrases,
  seed: int,
  size: int,
  split: str,
  *,
  register: str = "natural",
  others: Sequence[NaturalTool] = (),
  situations: Mapping[Situation, float] = SITUATIONS,
) -> list[dict[str, Any]]:
  """Makes rows over any tools and phrases: a pure function of its arguments.

  Args:
    tools: what may be on offer.
    phrases: what is no tool's own.
    seed: of the data.
    size: number of rows.
    split: its name in the rows.
    register: stands before the split in the rows' ids.
    others: tools that are never on offer and whose requests none of `tools` can serve; empty: those
      of `tools` that are not on offer serve as such.
    situations: their shares, in percent.

  Returns:
    Rows as `generate_natural` makes them. A situation that no tool knows (nothing is missing where
    nothing is required) leaves its share to `complete`.

  Raises:
    ValueError: more rows than there are distinct requests.
  """
  able: dict[Situation, Sequence[NaturalTool]] = {
    **dict.fromkeys(situations, tools),
    "parallel": [tool for tool in tools if tool.requests["orders"]],
    "missing": [tool for tool in tools if tool.requests["clarify"]],
    "unfit": others or tools,
  }
  shares = dict(situations)
  for situation, subjects in able.items():
    if not subjects:
      shares["complete"] += shares.pop(situation)
  name = f"{register}:{seed}:{split}"
  plan = planned(random.Random(name), size, shares, lambda situation: able[situation])
  rows: list[dict[str, Any]] = []
  taken: set[tuple[str, ...]] = set()
  for index, (situation, tool) in enumerate(plan):
    rng = random.Random(f"{name}:{index}")
    for _ in range(MAX_DRAWS):
      draft = _draft(rng, situation, tool, tools, phrases)
      style: Style = "tools" if rng.random() < NATIVE_SHARE else "system"
      system = rng.choice(phrases.system[style])
      many = rng.random() < MANY_SHARE
      number = rng.choice(MANY_TOOLS) if many else rng.choices(*TOOLS_SHOWN)[0]
      room = (MAX_CHARS_OF_MANY if many else MAX_CHARS) - len(system) - len(draft.request)
      shown = _shown(rng, draft, tools, number, room)
      prompt = (draft.request.lower(), *(tool.name for tool in shown))
      if prompt not in taken:
        break
    else:
      raise ValueError(f"{split}: cannot make {size} distinct tasks, only about {index}")
    taken.add(prompt)
    extra_info: dict[str, Any] = {
      "behavior": BEHAVIOR_OF[situation],
      "situation": situation,
      "tool": "none" if situation in ("unfit", "wish") else tool.name,
      "style": style,
      "split": split,
      "id": f"{register}-{split}-{index:04d}",
      "missing": list(draft.missing),
      "spoken": list(draft.spoken),
    }
    if draft.calls:
      extra_info["possible_answers"] = list(draft.possible_answers)
    rows.append(
      task_row(
        tools=[tool.offered(rng, draft.mentioned, HIDDEN_SHARE) for tool in shown],
        request=draft.request,
        ground_truth=draft.calls or draft.answer,
        style=style,
        system=system,
        extra_info=extra_info,
      )
    )
  return rows


@functools.cache
def inventory(split: NaturalSplit) -> tuple[tuple[NaturalTool, ...], Phrases]:
  """The tools of a split with the sentences that it may use, and its other phrases."""
  if split in ("warm", "unseen"):
    tools = read_tools(split)
  else:
    tools = tuple(tool.part(held_out=split == "seen") for tool in read_tools("train"))
  phrases = "phrases_train" if split in ("warm", "train") else "phrases_held_out"
  return tools, read_phrases(phrases)


@dataclass(frozen=True)
class _Draft:
  """A request and its right answer, before further tools are put beside it.

  Attributes:
    request: the user's message.
    spoken: what it says for values.
    mentioned: names of the arguments whose values it gives.
    about: the tools that are on offer in any case.
    near: names of tools to put beside them.
    without: names of tools that must not be on offer.
    calls: the wanted calls; empty where a text is wanted.
    possible_answers: what is accepted, one mapping a call.
    answer: a right text; empty where calls are wanted.
    missing: names of the required arguments that the request does not give.
  """

  request: str
  spoken: Sequence[str]
  mentioned: Collection[str]
  about: Sequence[NaturalTool]
  near: Sequence[str] = ()
  without: Sequence[str] = ()
  calls: Sequence[ToolCall] = ()
  possible_answers: Sequence[Mapping[str, Any]] = ()
  answer: str = ""
  missing: Sequence[str] = ()


def _draft(
  rng: random.Random,
  situation: Situation,
  tool: NaturalTool,
  tools: Sequence[NaturalTool],
  phrases: Phrases,
) -> _Draft:
  if situation == "parallel":
    return _parallel(rng, tool, tools, phrases)
  about, near, without = [tool], tool.near, list[str]()
  own = situation != "wish" and rng.random() < OWN_SHARE
  if situation == "wish":
    sentence, near = Sentence(rng.choice(phrases.wishes)), ()
  elif situation == "harmful":
    own = own and bool(tool.requests["harm"])
    sentence = rng.choice(tool.requests["harm"]) if own else Sentence(rng.choice(phrases.harm))
  elif situation == "unfit" and own and tool in tools and tool.requests["no_tool"]:
    sentence = rng.choice(tool.requests["no_tool"])
    without = list(sentence.unless)
  elif situation == "unfit":
    sentence = rng.choice(tool.requests["execute"])
    about, without = [], [tool.name]
  elif situation == "missing":
    sentence = rng.choice(tool.requests["clarify"])
  else:
    sentence = rng.choice(tool.requests["execute"])
  said = _request(rng, phrases, [(tool, sentence)])
  draft = _Draft(said.text, said.spoken, said.mentioned, about, near, without)
  if situation == "complete":
    return dataclasses.replace(draft, **_answer([tool], said))
  if situation == "missing":
    missing = tool.missing_in(sentence)
    answer = _question(rng, [rng.choice(argument.ask) for argument in missing])
    names = [argument.name for argument in missing]
    return dataclasses.replace(draft, answer=answer, missing=names)
  declined = phrases.wont if situation == "harmful" else phrases.no_tool
  return dataclasses.replace(draft, answer=rng.choice(declined))


def _parallel(
  rng: random.Random, tool: NaturalTool, tools: Sequence[NaturalTool], phrases: Phrases
) -> _Draft:
  """Two orders in one message, of two tools, or of one with other values."""
  others = [other for other in tools if other is not tool and other.requests["orders"]]
  orders = tool.requests["orders"]
  for _ in range(MAX_DRAWS):
    if rng.random() < SAME_TOOL_SHARE or not others:
      called = [tool, tool]
      wordings = rng.sample(orders, 2) if len(orders) > 1 else [orders[0]] * 2
    else:
      called = [tool, rng.choice(others)]
      wordings = [rng.choice(each.requests["orders"]) for each in called]
    said = _request(rng, phrases, list(zip(called, wordings, strict=True)))
    answer = _answer(called, said)
    first, second = answer["calls"]
    if first != second:
      about = [tool] if called[1] is tool else called
      return _Draft(said.text, said.spoken, said.mentioned, about, tool.near, **answer)
  raise ValueError(f"{tool.name}: has no two orders with different values")


def _answer(tools: Sequence[NaturalTool], said: "_Said") -> dict[str, Any]:
  """The calls that give what is said, and what is accepted in place of their values."""
  calls, accepted = [], []
  for tool, given in zip(tools, said.values, strict=True):
    calls.append(ToolCall(tool.name, {name: value.value for name, value in given.items()}))
    options = {name: [value.value, *value.accept] for name, value in given.items()}
    accepted.append({tool.name: options})
  return {"calls": calls, "possible_answers": accepted}


def _question(rng: random.Random, asks: Sequence[str]) -> str:
  first, *more = asks
  for other in more:
    first += f" And {_lowered(other)}" if rng.random() < 0.5 else f" {other}"
  return first


def _shown(
  rng: random.Random, draft: _Draft, tools: Sequence[NaturalTool], number: int, room: int
) -> list[NaturalTool]:
  """The tools on offer: those that the request is about, near ones, and others.

  Args:
    rng: draws them.
    draft: the request.
    tools: all tools of the split.
    number: of tools, at most.
    room: characters for all schemas, unless those of the request's own tools have more.
  """
  shown = list(draft.about)
  rest = [tool for tool in tools if tool not in shown and tool.name not in draft.without]
  while len(shown) < number:
    left = room - sum(len(tool.schema_text) for tool in shown)
    fitting = [tool for tool in rest if len(tool.schema_text) <= left]
    near = [tool for tool in fitting if tool.name in draft.near]
    if not fitting:
      break
    shown.append(rng.choice(near if near and rng.random() < NEAR_SHARE else fitting))
    rest.remove(shown[-1])
  rng.shuffle(shown)
  return shown


# --- requests ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Said:
  """A message, and what it says.

  Attributes:
    text: the message.
    spoken: what it says for values that have a slot.
    values: what each of its sentences gives, in the schema's order.
  """

  text: str
  spoken: Sequence[str]
  values: Sequence[Mapping[str, Value]]

  @property
  def mentioned(self) -> set[str]:
    """The names of all arguments that it gives."""
    return {name for values in self.values for name in values}


def _request(
  rng: random.Random, phrases: Phrases, sentences: Sequence[tuple[NaturalTool, Sentence]]
) -> _Said:
  """A message of one or more sentences with its surroundings."""
  typo = rng.randrange(len(sentences)) if rng.random() < TYPO_SHARE else None
  filled = [
    _filled(rng, tool, sentence, typo == index) for index, (tool, sentence) in enumerate(sentences)
  ]
  text = _joined(rng, phrases, [said.text for said in filled])
  (first, start), (last, end) = sentences[0], sentences[-1]
  opening, closing = SLOT.match(start.text), _CLOSING_SLOT.search(end.text)
  ends_in_value = len(filled) == 1 and end.text.endswith("}")
  context = rng.choices(*CONTEXT)[0]
  if context in ("before", "both") and not _free_text(first, opening):
    before = rng.choice(phrases.before)
    if before[-1] in _STOPS:
      text = f"{before} {text}"
    else:
      text = f"{before}, {text if opening else _lowered(text)}"
  if context in ("after", "both") and not _free_text(last, closing):
    after = rng.choice(phrases.after)
    stop = "" if text[-1] in _STOPS else "." if after[0].isupper() else ","
    text, ends_in_value = f"{text}{stop} {after}", False
  if rng.random() < LOWER_SHARE:
    text = text.lower() if ends_in_value else text.lower().rstrip(".!?")
  spoken = [form for said in filled for form in said.spoken]
  return _Said(text, spoken, [given for said in filled for given in said.values])


def _joined(rng: random.Random, phrases: Phrases, texts: Sequence[str]) -> str:
  """A message as it is, or several orders as one."""
  text, *orders = texts
  for order in orders:
    joiner = rng.choice(phrases.joiners)
    starts = re.search(r"[.!?]\s+\{\}", joiner)  # a new sentence
    text += joiner.format(_capitalized(order) if starts else order)
  return f"{_capitalized(text)}." if orders else text


def _free_text(tool: NaturalTool, slot: re.Match[str] | None) -> bool:
  """Whether a slot holds text that could run on into what stands beside it."""
  return slot is not None and any(" " in str(v.value) for v in tool.by_name[slot[1]].values)


def _filled(rng: random.Random, tool: NaturalTool, sentence: Sentence, typo: bool) -> _Said:
  """A sentence with values in its slots."""
  found = {name: tool.by_name[name].find(value) for name, value in sentence.given.items()}
  spoken: dict[str, str] = {}
  for name in dict.fromkeys(SLOT.findall(sentence.text)):
    values = tool.by_name[name].values
    # A flight from Lima to Lima would be no request.
    texts = [value.value for value in found.values() if isinstance(value.value, str)]
    found[name] = rng.choice([value for value in values if value.value not in texts] or values)
    spoken[name] = found[name].spoken(rng)
  text = sentence.text
  if typo and not sentence.given:  # else the words are the values
    text = misspelled(rng, text)
  text = SLOT.sub(lambda slot: spoken[slot[1]], text)
  given = {name: found[name] for name in tool.by_name if name in found}
  return _Said(text, list(spoken.values()), [given])


def misspelled(rng: random.Random, text: str) -> str:
  """The text with two letters swapped, one dropped or one doubled in one word outside of slots."""
  words = [match for match in _WORD.finditer(text) if not match[0].startswith("{")]
  if not words:
    return text
  found = rng.choice(words)
  word = found[0]
  at = rng.randrange(1, len(word) - 1)  # the first letter is rarely wrong
  kind = rng.choice(("swap", "drop", "double"))
  if kind == "swap" and word[at] != word[at + 1]:
    wrong = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
  elif kind == "double":
    wrong = word[: at + 1] + word[at:]
  else:
    wrong = word[:at] + word[at + 1 :]
  return text[: found.start()] + wrong + text[found.end() :]


def _capitalized(text: str) -> str:
  return text[:1].upper() + text[1:]


def _lowered(text: str) -> str:
  """The text as it goes on after a comma; "I" and what is in capitals stay."""
  first, rest = text[:1], text[1:]
  keeps = re.match(r"I\b|\w[A-Z\d]", text)
  return text if keeps else first.lower() + rest
