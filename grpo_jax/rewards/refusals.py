"""The documented forms of declining a request, by language."""

from __future__ import annotations

import re

# Gaps are bounded, so that matching is linear in the text's length, and stay inside one clause:
# "I booked it, you can't miss it" declines nothing.
_NEAR = r"[^.?!,;:\n]"
_NOT_YOU = r"(?:(?!\byou\b)[^.?!\n])"
_I = r"\b(?:i|we)\b(?:(?!\byou\b)" + _NEAR + r"){0,30}?"
_CANNOT = (
  r"(?:can't|cannot|can not|couldn't|could not|won't|will not|unable to|not able to|"
  r"not allowed to|not permitted to|not going to|must decline|have to decline|refuse to)"
)
_TRIGGERS = ("n't", "not", "decline", "refuse", "unable")
_REGRET = r"\b(?:sorry|apologies|unfortunately|regrettably)\b"
_TOOLS = r"(?:tools?|functions?|apis?)"

# "I can't find the date in your message" looks for something, and "I can't wait" or "I can't say
# no" agrees; they do not decline.
_OTHERWISE = (
  r"(?!\s+(?:(?:find|see|determine|guess|proceed)\b(?![^.?!\n]{0,60}\b" + _TOOLS + r")|"
  r"(?:wait|help but|say no|refuse|decline|stop|resist|hesitate|forget|fail|complain|believe|"
  r"imagine|thank|agree more|be happier|only|just)\b))"
)

# Each form with what must occur in a sentence for it to match: plain search is a hundred times
# faster than the pattern, and most sentences hold none of it.
_FORMS: tuple[tuple[tuple[str, ...], str], ...] = (
  # English
  (_TRIGGERS, _I + _CANNOT + _OTHERWISE),
  (_TRIGGERS, _REGRET + _NOT_YOU + r"{0,20}?" + _CANNOT + _OTHERWISE),
  (("decline",), r"\b(?:i|we)\s+(?:(?:must|have\s+to|respectfully)\s+){0,2}decline\b"),
  (
    ("none of", "neither of"),
    r"\b(?:none|neither) of (?:my|the|these|those|our|your)\b[^.?!\n]{0,30}?" + _TOOLS + r"\b",
  ),
  (
    ("no ",),
    r"\bno\b(?! (?:problem|doubt|worries|issue|need)\b)" + _NEAR + r"{0,20}?" + _TOOLS + r"\b",
  ),
  (
    ("n't", "not"),
    r"\bthere (?:isn't|is not|aren't|are not)\b" + _NEAR + r"{0,20}?" + _TOOLS + r"\b",
  ),
  (
    ("n't have", "not have"),
    r"\b(?:don't|do not) have\b(?! (?:to|any (?:problem|trouble))\b)"
    + _NEAR
    + r"{0,40}?\b(?:"
    + _TOOLS
    + r"|way|ability|access|capability)\b",
  ),
  (
    ("beyond", "outside"),
    r"(?<!not )\b(?:beyond|outside)\b" + _NEAR + r"{0,20}?\b(?:what (?:i|we|my|our|these|the)|"
    r"abilit(?:y|ies)|capabilit(?:y|ies)|scope|reach|powers?|limits|remit|expertise|"
    + _TOOLS
    + r")\b",
  ),
  (
    ("not something",),
    r"\bnot something (?:i|we)(?:'m|'re| am| are)? (?:can|could|will|able to)\b",
  ),
  (
    ("n't", "not"),
    r"\b(?:my|these|the|our)\b" + _NEAR + r"{0,20}?" + _TOOLS + r"\b" + _NEAR + r"{0,20}?"
    r"(?:can't|cannot|can not|don't|do not|does not|doesn't|aren't|are not|isn't|is not)\b"
    r"(?! (?:need|require|mind|matter)\b)",
  ),
  (("possible",), r"\b(?:is|are|it's|that's) not possible\b|\bimpossible for me\b"),
  # Spanish, Portuguese, Italian, French
  (("no p", "no es"), r"\bno (?:puedo|podemos|es posible)\b"),
  (("não",), r"\bnão (?:posso|consigo|podemos)\b"),
  (("non poss",), r"\bnon (?:posso|possiamo)\b"),
  (("je ne",), r"\bje ne (?:peux|suis) pas\b(?! (?:sûr|certain))"),
  # German, Dutch
  (("nicht",), r"\bich kann\b[^.?!\n]{0,40}?\bnicht\b|\bkann ich\b[^.?!\n]{0,30}?\bnicht\b"),
  (("niet",), r"\bik kan\b[^.?!\n]{0,40}?\bniet\b|\bkan ik\b[^.?!\n]{0,30}?\bniet\b"),
  # Russian, Chinese, Japanese, Korean
  (("не мо",), r"\bне могу\b|\bне можем\b"),
  (("不", "无法"), r"(?:我|我们)(?:不能|无法|不可以)|抱歉[^。？！\n]{0,12}?(?:不能|无法)"),
  (
    ("ません", "でき", "かねます"),
    r"(?:できません|出来ません|お手伝いでき|お答えでき|いたしかねます)",
  ),
  (("수 없",), r"(?:할 수 없|도와드릴 수 없|드릴 수 없)"),
)
_PATTERNS = tuple((triggers, re.compile(pattern)) for triggers, pattern in _FORMS)

# "I can't search without a date": says what is missing, which is asking and not declining.
_CONDITION = re.compile(
  r"\b(?:without|unless|until|before)\b|\bonce (?:i|you|we)\b|\b(?:if|when) you (?:tell|give)\b"
)

# A question that may follow a refusal: it offers other help and asks for no argument.
_OFFER = re.compile(
  r"\b(?:anything else|something else|some other|other (?:way|ways|questions?|tasks?|topics?)|"
  r"else (?:i|we) can|help you with (?:anything|something)|assist you (?:with|in) (?:any|some)|"
  r"different (?:question|request|task)|instead)\b"
)


def declines(sentence: str) -> bool:
  """Whether a sentence (lower case, straight apostrophes) declines a request."""
  return (
    any(
      pattern.search(sentence) is not None
      for triggers, pattern in _PATTERNS
      if any(trigger in sentence for trigger in triggers)
    )
    and _CONDITION.search(sentence) is None
  )


def offers_other_help(sentence: str) -> bool:
  """Whether a question (lower case) merely offers other help, as refusals often end."""
  return _OFFER.search(sentence) is not None
