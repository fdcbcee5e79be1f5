"""What must not be written down or shown: keys, access tokens, and passwords in URLs."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
_SECRETS = (
  # `user:password@` of a URL; the user may be a token too.
  (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/?#'\"]+@", re.IGNORECASE), rf"\1{HIDDEN}@"),
  # A URL's parameters that grant access, signatures of object stores among them.
  (
    re.compile(
      r"([?&][\w.-]*(?:key|token|secret|password|signature|credential|\bsig)[\w.-]*=)[^&#\s'\"]+",
      re.IGNORECASE,
    ),
    rf"\1{HIDDEN}",
  ),
  # Tokens of the Hugging Face hub and keys of model providers, by their form.
  (re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[\w-]{32,})"), HIDDEN),
)


def redacted(text: str, known: Iterable[str] = ()) -> str:
  """A text with `***` for every secret in it.

  Args:
    text: what may hold secrets.
    known: secrets that do not look like one.
  """
  for secret in known:
    if secret:
      text = text.replace(secret, HIDDEN)
  for pattern, instead in _SECRETS:
    text = pattern.sub(instead, text)
  return text


def without_secrets(value: Any) -> Any:
  """Nested settings, as JSON has them, with every text redacted and `api_key` left empty."""
  if isinstance(value, str):
    return redacted(value)
  if isinstance(value, Mapping):
    return {k: None if k == "api_key" else without_secrets(entry) for k, entry in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(map(without_secrets, value))
  return value
