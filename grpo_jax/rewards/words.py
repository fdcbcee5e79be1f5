"""The words of a text without their endings, so that `cities` names `city`."""

import re
from functools import lru_cache

WORD = re.compile(r"[^\W_]+")
_SAME = {"email": "mail", "telephone": "phone"}


@lru_cache(maxsize=4096)
def words(text: str) -> frozenset[str]:
  """The stems of a text's words.

  Args:
    text: lower case.
  """
  return frozenset(map(stem, WORD.findall(text)))


@lru_cache(maxsize=4096)
def stem(word: str) -> str:
  """A word without -s, -ed, -ing and -e: `translated` and `translate` are the same."""
  word = _SAME.get(word, word)
  if len(word) > 4 and word.endswith("ies"):
    return word[:-3] + "y"
  if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
    word = word[:-1]
  if len(word) > 5 and (ending := next((e for e in ("ing", "ed") if word.endswith(e)), "")):
    word = word.removesuffix(ending)
    return word[:-1] if word[-1] == word[-2] else word
  return word[:-1] if len(word) > 4 and word.endswith("e") else word
