"""Finds calls in prose, in fences and in other model families' syntax."""

import re
from typing import Any, NamedTuple

from grpo_jax.files.json_text import Refused, decode_at, skip_whitespace
from grpo_jax.rewards.parsing.parsed import (
  CLOSE_TAG,
  MAX_CALLS,
  OPEN_TAG,
  PYTHON_TAG,
  ParseResult,
  has_call_sign,
  read_call,
)
from grpo_jax.rewards.parsing.python_calls import read_python_calls
from grpo_jax.tasks.schema import CALL_KEYS, ToolCall, function_of

#: How many places that turn out not to be JSON are tried as the start of a value. Each try is
#: linear in the text, so the whole search is.
MAX_STARTS = 4
MAX_VALUES = 4 * MAX_CALLS

_JSON_START = re.compile(r'\[[ \t\r\n]*\{|\{[ \t\r\n]*"')
_PYTHON_START = re.compile(r"\[[ \t\r\n]*[A-Za-z_][\w.]*\(")
_PYTHON_WHOLE = re.compile(r"\[?[ \t\r\n]*[A-Za-z_][\w.]*[ \t]*\(")
_FENCE = re.compile(r"```[^\n`]*\n?")


class _Found(NamedTuple):
  calls: list[ToolCall]
  form: str
  rest: str  # the text without the calls


def parse_auto(text: str) -> ParseResult | None:
  """Reads calls in the forms that `strict` refuses.

  In this order, the first that finds a call wins: `<tool_call>` blocks (also with prose around them
  or an end tag cut off); a text that is Python-call syntax as a whole, `[f(a=1), g(b="x")]`; JSON
  lists and objects anywhere, also in fences, after `<|python_tag|>`, separated by `;` or new lines,
  with `parameters` for `arguments` (Llama 3), with arguments as JSON text or in OpenAI's
  `{"type": "function", "function": ...}` envelope; a Python list of calls inside prose. A second
  form in the remaining text is an error, since one would have to guess which was meant.

  Args:
    text: a stripped completion.

  Returns:
    The calls, or None where the text holds no sign of any.

  Raises:
    Refused: with a code of `PARSE_ERRORS`.
  """
  found = _find_blocks(text) or _find_python(text) or _find_json(text) or _find_python_lists(text)
  if found is None:
    return None
  if len(found.calls) > MAX_CALLS:
    raise Refused("too_many_calls")
  if has_call_sign(found.rest):
    raise Refused("mixed_forms")
  return ParseResult(calls=tuple(found.calls), form=found.form, strict=False)


def _find_blocks(text: str) -> _Found | None:
  before, *pieces = text.split(OPEN_TAG)
  if not pieces:
    return None
  if len(pieces) > MAX_CALLS:
    raise Refused("too_many_calls")
  calls: list[ToolCall] = []
  rest = [before]
  for piece in pieces:
    value, end = decode_at(piece)
    read = _read_calls(value)
    if read is None:
      raise Refused("not_a_call")
    calls.extend(read)
    rest.append(piece[skip_whitespace(piece, end) :].removeprefix(CLOSE_TAG))
  return _Found(calls, "blocks", " ".join(rest))


def _find_python(text: str) -> _Found | None:
  inner = _FENCE.sub("", text) if text.startswith("```") else text
  inner = inner.removeprefix(PYTHON_TAG).strip()
  if not _PYTHON_WHOLE.match(inner) or not inner.endswith((")", "]")):
    return None
  try:
    return _Found(read_python_calls(inner), "python", "")
  except Refused as refused:
    # "Sorry (really), I can't (yet)" is prose; `[f(` cannot be.
    if refused.code == "not_literal" and not inner.startswith("["):
      return None
    raise


def _find_json(text: str) -> _Found | None:
  calls: list[ToolCall] = []
  rest: list[str] = []
  form = ""
  searched = taken = failed = 0  # two positions, and the number of starts that were none
  for _ in range(MAX_VALUES):
    match = _JSON_START.search(text, searched)
    if match is None or failed == MAX_STARTS:
      break
    try:
      # A value that decodes costs no more than its own length: the search goes on behind it.
      value, searched = decode_at(text, match.start())
    except Refused as refused:
      if refused.code != "bad_json":
        raise
      failed, searched = failed + 1, match.end()
      continue
    read = _read_calls(value)
    if read is None:
      continue
    form = form or ("list" if isinstance(value, list) else "object")
    calls.extend(read)
    if len(calls) > MAX_CALLS:
      raise Refused("too_many_calls")
    rest.append(text[taken : match.start()])
    taken = searched
  if not calls:
    return None
  rest.append(text[taken:])
  return _Found(calls, form, " ".join(rest).replace(PYTHON_TAG, ""))


def _find_python_lists(text: str) -> _Found | None:
  match = _PYTHON_START.search(text)
  end = text.rfind("]") + 1
  if match is None or end <= match.start():
    return None
  read = read_python_calls(text[match.start() : end])
  return _Found(read, "python", text[: match.start()] + " " + text[end:])


def _read_calls(value: Any) -> list[ToolCall] | None:
  """The calls in a decoded value, or None if any part of it is not a call."""
  entries = value[: MAX_CALLS + 1] if isinstance(value, list) else [value]
  calls = [call for call in map(_read_loose_call, entries) if call is not None]
  return calls if calls and len(calls) == len(entries) else None


def _read_loose_call(value: Any) -> ToolCall | None:
  value = function_of(value)
  # A tool's schema has a name and parameters too, but also a description: it is no call.
  if not isinstance(value, dict) or not value.keys() <= CALL_KEYS:
    return None
  if ("arguments" in value) == ("parameters" in value):
    return None
  arguments = value.get("arguments", value.get("parameters"))
  if isinstance(arguments, str):
    try:
      arguments, _ = decode_at(arguments)
    except Refused:
      return None
  return read_call({"name": value.get("name"), "arguments": arguments})
