"""Whether a sentence declines, asks or offers, in the forms that `assets/answers.toml` lists.

Sentences are in lower case with straight apostrophes.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from grpo_jax.files.assets import read_asset
from grpo_jax.rewards.words import WORD, words

_WEAK, _FIRM = 1, 2


@dataclass(frozen=True, eq=False, slots=True)
class _Form:
  pattern: re.Pattern[str]
  strength: int


class _Kind(NamedTuple):
  words: frozenset[str]
  types: frozenset[str]
  pattern: re.Pattern[str]


def _joined(lines: str) -> str:
  """A pattern without the breaks and indents of its lines."""
  return "".join(map(str.strip, lines.split("\n"))) if "\n" in lines else lines


_ASSET = read_asset("answers")
_PARTS = {name: _joined(part) for name, part in _ASSET["parts"].items()}
_PART = re.compile(f"<({'|'.join(_PARTS)})>")


def _compiled(pattern: str) -> re.Pattern[str]:
  pattern = _joined(pattern)
  while found := _PART.search(pattern):  # parts may hold parts
    pattern = pattern.replace(found[0], _PARTS[found[1]])
  return re.compile(pattern)


class _Forms:
  """Forms, found by the words of which a sentence must hold one."""

  def __init__(self, entries: list[dict[str, Any]]) -> None:
    self._by_word: dict[str, list[_Form]] = {}
    for entry in entries:
      weak = entry.get("weak") or entry.get("conditional")
      form = _Form(_compiled(entry["pattern"]), _WEAK if weak else _FIRM)
      for word in entry.get("triggers", "").split() or [""]:
        self._by_word.setdefault(word, []).append(form)
    self._words = frozenset(self._by_word)

  def strength(self, sentence: str) -> int:
    """The strength of the strongest form that a sentence holds; 0 where it holds none."""
    found = self._words.intersection(WORD.findall(sentence))
    if not sentence.isascii():
      found |= {""}
    forms = dict.fromkeys(form for word in found for form in self._by_word.get(word, ()))
    best = 0
    for form in forms:
      if form.strength > best and form.pattern.search(sentence):
        best = form.strength
        if best == _FIRM:
          break
    return best


_DECLINES, _ASKS = _Forms(_ASSET["declines"]), _Forms(_ASSET["asks"])
_CLAUSE_END = _compiled(_ASSET["clause_end"])
_CONDITION, _DELIVERY = _compiled(_ASSET["condition"]), _compiled(_ASSET["delivery"])
_FOR_NOW = _compiled(_ASSET["for_now"])
_OFFER, _SOFT_OFFER = _compiled(_ASSET["offer"]), _compiled(_ASSET["soft_offer"])
_KINDS = [
  _Kind(words(kind["words"]), frozenset(kind.get("types", ())), _compiled(kind["pattern"]))
  for kind in _ASSET["kinds"]
]


def refusal(sentence: str) -> Literal["firm", "weak"] | None:
  """How a sentence declines a request, if it does.

  A weak refusal ("I can only ...", "I don't know ...") declines only where nothing is asked. A
  clause with a condition ("I can't book it without a date") says what is missing.
  """
  found = _DECLINES.strength(sentence)
  if found and _CONDITION.search(sentence):
    # It may be that of an offer: "I can't do this, but I can look it up if you tell me the day".
    clauses = (one for one in _CLAUSE_END.split(sentence) if not _CONDITION.search(one))
    found = max((_DECLINES.strength(clause) for clause in clauses), default=0)
  if found == _FIRM and _FOR_NOW.search(sentence):
    found = _WEAK
  return (None, "weak", "firm")[found]


def request(sentence: str) -> Literal["firm", "conditional"] | None:
  """How a sentence without a question mark asks for something, if it does.

  A conditional request ("If you tell me the date, I can ...") is an offer where the text declines.
  """
  return (None, "conditional", "firm")[_ASKS.strength(sentence)]


def offers_other_help(sentence: str) -> bool:
  """Whether a sentence merely offers other help, as refusals often end."""
  return _OFFER.search(sentence) is not None


def offers_to_act(question: str) -> bool:
  """Whether a question offers to do something ("Would you like me to ...?")."""
  return _SOFT_OFFER.search(question) is not None


def delivers(text: str) -> bool:
  """Whether a text that declines does it all the same: a draft, steps, "but I sent it"."""
  return _DELIVERY.search(text) is not None


@lru_cache(maxsize=4096)
def kinds_asked(question: str) -> frozenset[int]:
  """What kinds of value a question asks for (when, where, who, how much ...), as numbers."""
  return frozenset(n for n, kind in enumerate(_KINDS) if kind.pattern.search(question))


def kinds_of(about: frozenset[str], type_of: str) -> frozenset[int]:
  """The kinds of value that an argument is, by the words that name or describe it and its type."""
  return frozenset(
    n for n, kind in enumerate(_KINDS) if about & kind.words or type_of in kind.types
  )
