"""Rules for answers without a call: does the text ask for what is missing, or decline?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from grpo_jax.rewards.refusals import declines, offers_other_help
from grpo_jax.tasks.schema import ToolTask

TextKind = Literal["asks", "declines", "hedging", "degenerate", "states"]

#: A question may name this many arguments that are not missing.
MAX_OTHER_ARGUMENTS = 1
#: Below this share of different four-character pieces a text is taken to repeat itself.
MIN_DISTINCT_SHARE = 0.3

_WORD = re.compile(r"[^\W_]+")
_NAME_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\dA-Z_]+|\d+")
# A stop after an abbreviation ends no sentence: "the departure date (e.g. 2 May)?"
_SENTENCE_END = re.compile(
  r"(?<=[.!?؟])(?<!\b(?:e\.g|i\.e)\.)(?<!\b(?:mr|ms|dr|st|vs)\.)(?<!\bmrs\.)\s+"
  r"|(?<=[。！？])|\n+"
)
# Not "confirm": "Booked for 2 May. Could you confirm?" has made up what it should ask for.
_PROVIDE = re.compile(
  r"\b(?:provide|tell|specify|share|give|say|clarify|enter|supply|let me know)\b"
)
_POINTER = re.compile(r"\b(?:it|that|this|them|these|those)\b")
_ASKING_WORDS = frozenset(
  ("provide", "specify", "share", "say", "clarify", "enter", "supply", "let", "know", "kindly")
)
_CLAUSE_END = re.compile(r"[.,;:(\n]|\be\.g|\bfor example|\bsuch as")

# Words that say nothing about which argument is meant.
_SMALL_WORDS = (
  "a an and any are as at be been by can could d did do does for from get give given had has have "
  "he her how i if in into is it its ll m may me must my n need of on or our out please q s shall "
  "she should so t tell than that the their them then there these they this those to up us use "
  "used using want was we were what when where which who whose why will with would x y you your"
)
_STOPWORDS = frozenset(_SMALL_WORDS.split())


@dataclass(frozen=True, slots=True)
class TextReading:
  """What a text without calls does.

  Attributes:
    kind: `asks` (a question, and no refusal), `declines` (a refusal, and no question but an offer
      of other help), `hedging` (both), `degenerate` (empty, without words, too long, repeating
      itself) or `states` (anything else).
    questions: the sentences that ask, each with the sentence before it where the question alone
      says only "could you provide it?"; lower case.
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
  sentences = list(filter(str.strip, _SENTENCE_END.split(text.lower().replace("’", "'"))))
  questions: list[str] = []
  declined = False
  for index, sentence in enumerate(sentences):
    declined = declined or declines(sentence)
    if not _is_question(sentence) or offers_other_help(sentence):
      continue
    before = sentences[index - 1] + " " if index and _refers_back(sentence) else ""
    questions.append(before + sentence)
  if declined:
    return TextReading("hedging" if questions else "declines")
  return TextReading("asks" if questions else "states", tuple(questions))


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
  in any order, singular or plural) or by most words of its description's first clause. A name made
  of nothing but small words (`to`) counts only in quotes or through its description. Only
  `task.missing` counts, when given; else the arguments that the wanted question names, else any
  required argument of the task's tools, and for a task without tools any telling word of the
  wanted question.
  """
  questions = reading.questions
  missing, others = _arguments(task)
  if not missing:
    telling = _words(task.answer.lower()) - _STOPWORDS
    found = any(_words(question) & telling for question in questions)
    return "asks" if found or not telling else "wrong_question"
  if not any(argument.is_named_in(question) for argument in missing for question in questions):
    return "wrong_question"
  missing_words = set().union(*(argument.words for argument in missing))
  too_many = {
    argument.words
    for argument in others
    if not argument.words <= missing_words
    and any(argument.is_named_in(question, by_description=False) for question in questions)
  }
  return "asks_everything" if len(too_many) > MAX_OTHER_ARGUMENTS else "asks"


@dataclass(frozen=True, slots=True)
class _Argument:
  name: str
  words: frozenset[str]
  description: frozenset[str]

  def is_named_in(self, question: str, by_description: bool = True) -> bool:
    words = _words(question)
    if self.words and self.words <= words and not self.words <= _STOPWORDS:
      return True
    name = self.name.lower()
    if name in question and (
      not name.isascii() or any(f"{quote}{name}{quote}" in question for quote in "\"'`")
    ):
      return True
    told = self.description
    return by_description and bool(told) and len(told & words) * 3 >= len(told) * 2


@lru_cache(maxsize=4096)
def _argument(name: str, description: str) -> _Argument:
  words = frozenset(_singular(part.lower()) for part in _NAME_PART.findall(name))
  clause = _CLAUSE_END.split(description[:200].lower(), maxsplit=1)[0]
  return _Argument(name, words, _words(clause) - _STOPWORDS)


@lru_cache(maxsize=4096)
def _words(text: str) -> frozenset[str]:
  return frozenset(map(_singular, _WORD.findall(text)))


def _singular(word: str) -> str:
  """The singular of a word, so that `cities` names `city`."""
  if len(word) > 4 and word.endswith("ies"):
    return word[:-3] + "y"
  return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _arguments(task: ToolTask) -> tuple[list[_Argument], list[_Argument]]:
  """The arguments that may be asked for, and all the others."""
  about = task.extra.get("tool")
  specs = [spec for spec in task.tools if spec.name == about] or list(task.tools)
  described: dict[str, _Argument] = {}
  for spec in (*specs, *task.tools):
    for name, schema in spec.properties.items():
      if name not in described:
        described[name] = _argument(name, _description(schema))
  wanted = list(task.missing)
  if not wanted:
    gold = task.answer.lower()
    wanted = [name for name, argument in described.items() if argument.is_named_in(gold, False)]
  if not wanted:
    wanted = [name for spec in specs for name in spec.required if isinstance(name, str)]
  missing = [described.get(name) or _argument(name, "") for name in dict.fromkeys(wanted)]
  return missing, [argument for name, argument in described.items() if name not in wanted]


def _description(schema: object) -> str:
  text = schema.get("description") if isinstance(schema, Mapping) else None
  return text if isinstance(text, str) else ""


def _is_question(sentence: str) -> bool:
  return sentence.rstrip(" \t\"'`*_)]»”").endswith(("?", "？", "؟"))


def _refers_back(question: str) -> bool:
  """Whether a question asks to be told without saying what: "could you provide it?"."""
  if _PROVIDE.search(question) is None:
    return False
  telling = set(_WORD.findall(question)) - _STOPWORDS - _ASKING_WORDS
  return not telling or _POINTER.search(question) is not None
