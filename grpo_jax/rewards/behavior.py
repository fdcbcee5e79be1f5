"""Rules for answers without a call: does the text ask for what is missing, or decline?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Literal

from grpo_jax.rewards.phrases import (
  delivers,
  kinds_asked,
  kinds_of,
  offers_other_help,
  offers_to_act,
  refusal,
  request,
)
from grpo_jax.rewards.words import WORD, stem, words
from grpo_jax.tasks.schema import ToolTask

TextKind = Literal["asks", "declines", "hedging", "degenerate", "states"]

#: A question may name this many arguments that are not missing.
MAX_OTHER_ARGUMENTS = 1
#: Below this share of different four-character pieces a text is taken to repeat itself.
MIN_DISTINCT_SHARE = 0.3

_NAME_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\dA-Z_]+|\d+")
# A stop after an abbreviation ends no sentence: "the departure date (e.g. 2 May)?"
_SENTENCE_END = re.compile(
  r"(?<=[.!?؟])(?<!\b(?:e\.g|i\.e)\.)(?<!\b(?:mr|ms|dr|st|vs)\.)(?<!\bmrs\.)(?<!\n\d\.)(?<!\n\d\d\.)\s+"
  r"|(?<=[。！？])|\n+"
)
# Not "confirm": "Booked for 2 May. Could you confirm?" has made up what it should ask for.
_PROVIDE = re.compile(
  r"\b(?:provide|tell|specify|share|give|say|clarify|enter|supply|let me know)\b"
)
_POINTER = re.compile(r"\b(?:it|that|this|them|these|those|missing|necessary|required)\b")
_ASKING_WORDS = frozenset(
  ("provide", "specify", "share", "say", "clarify", "enter", "supply", "let", "know", "kindly")
)
_ITEM = re.compile(r"\s*(?:[-*•–]|\(?\d{1,2}[.)])")
_CLAUSE_END = re.compile(
  r"[.,;:(\n]|\be\.g|\bfor example|\bsuch as|\bin (?:degrees|percent|euros?|dollars|seconds|minutes"
  r"|hours|days|years|kilograms|kg|liters|meters|kilometers|km|miles|cubic|square)\b"
)
# Words that say nothing about which argument is meant.
_SMALL_WORDS = (
  "a an and any are as at be been by can could d did do does for from get give given had has have "
  "he her how i if in into is it its ll m may me must my n need of on or our out please q s shall "
  "she should so t tell than that the their them then there these they this those to up us use "
  "used using want was we were what when where which who whose why will with would x y you your"
)
_STOPWORDS = frozenset(word for raw in _SMALL_WORDS.split() for word in (raw, stem(raw)))
# Words that say of a value that it is one, and units: the title of the song is the song.
_GENERIC = frozenset(
  map(stem, "name title number id identifier code kind type kg km cm min eur usd celsius".split())
)


@dataclass(frozen=True, slots=True)
class TextReading:
  """What a text without calls does.

  Attributes:
    kind: `asks` (a question or a request, and no refusal), `declines` (a refusal, and no question
      but an offer), `hedging` (both), `degenerate` (empty, without words, too long, repeating
      itself) or `states` (anything else; so does a refusal after which it is done all the same).
    questions: the sentences that ask, each with the list that follows it, and with the sentence
      before it where it says only "could you provide it?"; lower case.
  """

  kind: TextKind
  questions: tuple[str, ...] = ()


def read_text(text: str, max_chars: int = 1000) -> TextReading:
  """Classifies a text without calls; each text is of exactly one kind.

  Args:
    text: a completion in which no call was found.
    max_chars: longer texts are degenerate.
  """
  text = text.strip()
  if len(text) > max_chars or is_degenerate(text):
    return TextReading("degenerate")
  text = text.lower().replace("’", "'").replace("e-mail", "email")
  sentences = list(filter(str.strip, _SENTENCE_END.split(text)))
  questions: list[str] = []
  firm = insists = 0  # refusals, and questions that offer nothing
  weak = False
  for index, sentence in enumerate(sentences):
    refused = refusal(sentence)
    firm, weak = firm + (refused == "firm"), weak or refused == "weak"
    asked = "firm" if _is_question(sentence) else request(sentence)
    if asked is None or offers_other_help(sentence):
      continue
    insists += asked == "firm" and not offers_to_act(sentence)
    before = sentences[index - 1] + " " if index and _refers_back(sentence) else ""
    questions.append(before + " ".join([sentence, *_listed(sentences, index)]))
  if firm or (weak and not questions):
    kind: TextKind = "hedging" if insists else "states" if delivers(text) else "declines"
    return TextReading(kind)
  return TextReading("asks" if questions else "states", tuple(questions))


def _listed(sentences: list[str], index: int) -> list[str]:
  """The items of the list that a sentence announces with a colon."""
  if not sentences[index].rstrip(" *_").endswith(":"):
    return []
  return list(takewhile(_ITEM.match, sentences[index + 1 :]))


def is_degenerate(text: str) -> bool:
  """Whether a text has no word at all or repeats itself."""
  if not any(char.isalpha() for char in text):
    return True
  pieces = len(text) - 3
  if pieces < 24:
    return False
  return len({text[i : i + 4] for i in range(pieces)}) < MIN_DISTINCT_SHARE * pieces


def asks_for_missing(
  reading: TextReading, task: ToolTask
) -> Literal["asks", "wrong_question", "asks_everything"]:
  """Whether the questions of a text name what is missing.

  An argument is named by its name, by all words of its name (`departure_date`: departure, date;
  in any order, without their endings; words such as "number" or "title" may be left out), by most
  words of its description's first clause, by two of its `enum`'s values, or by the kind of value
  that it is ("When ...?" asks for a date, "How much ...?" for an amount). A name made of nothing
  but small words (`to`) counts only in quotes, by its description or by its kind. Only
  `task.missing` counts, when given; else the arguments that the wanted question names, else any
  required argument of the task's tools, and for a task without tools any telling word of the
  wanted question.
  """
  questions = reading.questions
  missing, others = _arguments(task)
  if not missing:
    telling = words(task.answer.lower()) - _STOPWORDS
    found = any(words(question) & telling for question in questions)
    return "asks" if found or not telling else "wrong_question"
  if not any(
    _asked_for(argument, others, question) for argument in missing for question in questions
  ):
    return "wrong_question"
  wanted = frozenset().union(*(one.words | one.description for one in missing))
  named = [
    one
    for one in others
    if not one.words <= wanted and any(one.is_named_in(question) for question in questions)
  ]
  # "The phone number of the applicant" asks for the `phone` alone, if that is its description.
  told = frozenset().union(*(one.description - one.words for one in named))
  kinds = frozenset().union(*map(kinds_asked, questions))
  kinds -= frozenset().union(*(one.kinds for one in (*missing, *named)))
  kinds &= frozenset().union(*(one.kinds for one in others if one not in named))
  too_many = len(kinds) + sum(not one.words <= told for one in named)
  return "asks_everything" if too_many > MAX_OTHER_ARGUMENTS else "asks"


@dataclass(frozen=True, slots=True)
class _Argument:
  name: str
  words: frozenset[str]
  telling: frozenset[str]
  description: frozenset[str]
  choices: frozenset[str]
  kinds: frozenset[int]

  def is_named_in(self, question: str) -> bool:
    """Whether a question holds all words of the name, or the name itself where that is one."""
    if self.words and self.words <= words(question) and not self.words <= _STOPWORDS:
      return True
    name = self.name.lower()
    return name in question and (
      not name.isascii() or any(f"{quote}{name}{quote}" in question for quote in "\"'`")
    )


def _asked_for(argument: _Argument, others: list[_Argument], question: str) -> bool:
  """Whether a question asks for an argument, by its name, its description or its kind."""
  said, told = words(question), argument.description
  if argument.is_named_in(question) or not argument.kinds.isdisjoint(kinds_asked(question)):
    return True
  if told and len(told & said) * 3 >= len(told) * 2:
    return True
  if len(argument.choices & said) > 1:  # "Economy or business?"
    return True
  # `to_unit` by "unit", unless the question says `from_unit`.
  return bool(argument.telling) and (
    argument.telling <= said
    and not any(argument.telling <= one.words and one.is_named_in(question) for one in others)
  )


@lru_cache(maxsize=4096)
def _argument(
  name: str, description: str = "", kind: str = "", choices: tuple[str, ...] = ()
) -> _Argument:
  named = frozenset(stem(part.lower()) for part in _NAME_PART.findall(name))
  clause = words(_CLAUSE_END.split(description[:200].lower(), maxsplit=1)[0])
  told = clause - _STOPWORDS
  return _Argument(
    name,
    named,
    named - _STOPWORDS - _GENERIC,
    told - _GENERIC or told,
    frozenset(stem(choice.lower()) for choice in choices) - _STOPWORDS,
    kinds_of(named | clause, kind),
  )


def _arguments(task: ToolTask) -> tuple[list[_Argument], list[_Argument]]:
  """The arguments that may be asked for, and all the others."""
  about = task.extra.get("tool")
  specs = [spec for spec in task.tools if spec.name == about] or list(task.tools)
  described: dict[str, _Argument] = {}
  for spec in (*specs, *task.tools):
    for name, schema in spec.properties.items():
      if name not in described:
        described[name] = _argument(
          name, _text(schema, "description"), _text(schema, "type"), _choices(schema)
        )
  wanted = list(task.missing)
  if not wanted:
    gold = task.answer.lower()
    wanted = [name for name, argument in described.items() if argument.is_named_in(gold)]
  if not wanted:
    wanted = [name for spec in specs for name in spec.required if isinstance(name, str)]
  missing = [described.get(name) or _argument(name) for name in dict.fromkeys(wanted)]
  others = [argument for name, argument in described.items() if name not in wanted]
  return missing, others


def _text(schema: object, key: str) -> str:
  value = schema.get(key) if isinstance(schema, Mapping) else None
  return value if isinstance(value, str) else ""


def _choices(schema: object) -> tuple[str, ...]:
  values = schema.get("enum") if isinstance(schema, Mapping) else None
  listed = values if isinstance(values, (list, tuple)) else ()
  return tuple(value for value in listed if isinstance(value, str))


def _is_question(sentence: str) -> bool:
  return sentence.rstrip(" \t\"'`*_)]»”").endswith(("?", "？", "؟"))


def _refers_back(question: str) -> bool:
  """Whether a question asks to be told without saying what: "could you provide it?"."""
  if _PROVIDE.search(question) is None:
    return False
  telling = set(WORD.findall(question)) - _STOPWORDS - _ASKING_WORDS
  return not telling or _POINTER.search(question) is not None
