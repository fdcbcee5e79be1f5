"""Whether a sentence declines a request, in the forms that `assets/refusals.toml` lists."""

import re

from grpo_jax.files.assets import read_asset


def _compiled(pattern: str | list[str]) -> re.Pattern[str]:
  whole = "".join(pattern)
  for name, part in _ASSET["parts"].items():
    whole = whole.replace(f"<{name}>", "".join(part))
  return re.compile(whole)


_ASSET = read_asset("refusals")
_FORMS = [(form["triggers"], _compiled(form["pattern"])) for form in _ASSET["forms"]]
_CONDITION, _OFFER = _compiled(_ASSET["condition"]), _compiled(_ASSET["offer"])


def declines(sentence: str) -> bool:
  """Whether a sentence (lower case, straight apostrophes) declines a request."""
  return _CONDITION.search(sentence) is None and any(
    pattern.search(sentence)
    for triggers, pattern in _FORMS
    if any(trigger in sentence for trigger in triggers)
  )


def offers_other_help(sentence: str) -> bool:
  """Whether a question (lower case) merely offers other help, as refusals often end."""
  return _OFFER.search(sentence) is not None
