"""Finds calls in prose, in fences and in other model families' syntax."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from grpo_jax.files.json_text import Decoded, decode_at, skip_whitespace
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
from grpo_jax.tasks.schema import CALL_KEYS, ToolCall

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


def parse_auto(text: str, strict: ParseResult) -> ParseResult:
  """Reads calls in the forms that `strict` refuses.

  In this order, the first that finds a call wins: `<tool_call>` blocks (also with prose around them
  or an end tag cut off); a text that is Python-call syntax as a whole, `[f(a=1), g(b="x")]`; JSON
  lists and objects anywhere, also in fences, after `<|python_tag|>`, separated by `;` or new lines,
  with `parameters` for `arguments` (Llama 3), with arguments as JSON text or in OpenAI's
  `{"type": "function", "function": ...}` envelope; a Python list of calls inside prose. A second
  form in the remaining text is an error, since one would have to guess which was meant.

  Args:
    text: a stripped completion.
    strict: what the strict parser said about it; its error stands when nothing is found.
  """
  found = _find_blocks(text) or _find_python(text) or _find_json(text) or _find_python_lists(text)
  if isinstance(found, str):
    return ParseResult(error=found)
  if found is None:
    return strict
  if len(found.calls) > MAX_CALLS:
    return ParseResult(error="too_many_calls")
  if has_call_sign(found.rest):
    return ParseResult(error="mixed_forms")
  return ParseResult(calls=tuple(found.calls), form=found.form)


def _find_blocks(text: str) -> _Found | str | None:
  pieces = text.split(OPEN_TAG)
  if len(pieces) == 1:
    return None
  if len(pieces) > MAX_CALLS + 1:
    return "too_many_calls"
  calls: list[ToolCall] = []
  rest = [pieces[0]]
  for piece in pieces[1:]:
    decoded = decode_at(piece)
    if decoded.error:
      return decoded.error
    read = _read_calls(decoded.value)
    if read is None:
      return "not_a_call"
    calls.extend(read)
    end = skip_whitespace(piece, decoded.end)
    rest.append(piece[end + len(CLOSE_TAG) * piece.startswith(CLOSE_TAG, end) :])
  return _Found(calls, "blocks", " ".join(rest))


def _find_python(text: str) -> _Found | str | None:
  inner = _FENCE.sub("", text) if text.startswith("```") else text
  inner = inner.removeprefix(PYTHON_TAG).strip()
  if not _PYTHON_WHOLE.match(inner) or not inner.endswith((")", "]")):
    return None
  read = read_python_calls(inner)
  if isinstance(read, str):
    # "Sorry (really), I can't (yet)" is prose; `[f(` cannot be.
    return read if inner.startswith("[") or read != "not_literal" else None
  return _Found(read, "python", "")


def _find_json(text: str) -> _Found | str | None:
  calls: list[ToolCall] = []
  rest: list[str] = []
  position, form = 0, ""
  for start, decoded in _json_values(text):
    if decoded.error not in (None, "bad_json"):
      return decoded.error
    read = None if decoded.error else _read_calls(decoded.value)
    if read is None:
      continue
    form = form or ("list" if isinstance(decoded.value, list) else "object")
    calls.extend(read)
    if len(calls) > MAX_CALLS:
      return "too_many_calls"
    rest.append(text[position:start])
    position = decoded.end
  if not calls:
    return None
  rest.append(text[position:])
  return _Found(calls, form, " ".join(rest).replace(PYTHON_TAG, ""))


def _json_values(text: str) -> Iterator[tuple[int, Decoded]]:
  position, failed = 0, 0
  for _ in range(MAX_VALUES):
    match = _JSON_START.search(text, position)
    if match is None or failed == MAX_STARTS:
      return
    decoded = decode_at(text, match.start())
    yield match.start(), decoded
    # A value that decodes costs no more than its own length: the search goes on behind it.
    failed += decoded.error is not None
    position = match.end() if decoded.error else decoded.end


def _find_python_lists(text: str) -> _Found | str | None:
  match = _PYTHON_START.search(text)
  end = text.rfind("]") + 1
  if match is None or end <= match.start():
    return None
  read = read_python_calls(text[match.start() : end])
  if isinstance(read, str):
    return read
  return _Found(read, "python", text[: match.start()] + " " + text[end:])


def _read_calls(value: Any) -> list[ToolCall] | None:
  """The calls in a decoded value, or None if any part of it is not a call."""
  entries = value if isinstance(value, list) else [value]
  if len(entries) > MAX_CALLS + 1:
    entries = entries[: MAX_CALLS + 1]
  calls = [_read_loose_call(entry) for entry in entries]
  if not calls or any(call is None for call in calls):
    return None
  return [call for call in calls if call is not None]


def _read_loose_call(value: Any) -> ToolCall | None:
  if isinstance(value, dict) and isinstance(value.get("function"), dict):
    value = value["function"]
  # A tool's schema has a name and parameters too, but also a description: it is no call.
  if not isinstance(value, dict) or not value.keys() <= CALL_KEYS:
    return None
  if ("arguments" in value) == ("parameters" in value):
    return None
  arguments = value.get("arguments", value.get("parameters"))
  if isinstance(arguments, str):
    arguments = decode_at(arguments).value
  return read_call({"name": value.get("name"), "arguments": arguments})
