"""Python-call syntax, as in the Berkeley leaderboard: `[f(a=1), g(b="x")]`; literals only."""

from __future__ import annotations

import ast
import keyword
import math
import re
import warnings
from typing import Any

from grpo_jax.files.json_text import MAX_DIGITS
from grpo_jax.rewards.parsing.parsed import MAX_CALLS
from grpo_jax.tasks.schema import ToolCall

MAX_PYTHON_CHARS = 4096
MAX_PYTHON_DEPTH = 16

# Only what literals and calls are made of reaches Python's parser: no operators, so nothing nests
# without brackets, and brackets are counted.
_TOKEN = re.compile(
  r"""
  (?P<text>[rRuU]?(?:"(?:[^"\\\n]++|\\.)*+"|'(?:[^'\\\n]++|\\.)*+'))
  |(?P<number>-?(?:\d[\w.]*+(?:(?<=[eE])[+-]\d++)?|\.\d\w*+))
  |(?P<name>[^\W\d]\w*+(?:\.[^\W\d]\w*+)*+)
  |(?P<open>[(\[{])
  |(?P<close>[)\]}])
  |(?P<other>[,=:\s])
  """,
  re.VERBOSE | re.DOTALL,
)
_JSON_NAMES = {"true": True, "false": False, "null": None}
_LITERAL_KEYWORDS = ("True", "False", "None")


class _Refused(ValueError):
  def __init__(self, code: str) -> None:
    super().__init__(code)
    self.code = code


def read_python_calls(text: str) -> list[ToolCall] | str:
  """Reads one call or a list of calls, with keyword arguments that are literals.

  Nothing is evaluated: the text goes through `ast.parse`, and its nodes are read. `true`, `false`
  and `null` count as literals; tuples become lists.

  Returns:
    The calls, or an error code: `not_literal`, `too_long`, `too_deep`, `duplicate_key`,
    `huge_number`, `lone_surrogate` or `too_many_calls`.
  """
  if len(text) > MAX_PYTHON_CHARS:
    return "too_long"
  error = _token_error(text)
  if error:
    return error
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # "\d" in a string is the model's business
      body = ast.parse(text.strip(), mode="eval").body
    nodes = body.elts if isinstance(body, ast.List) else [body]
    if len(nodes) > MAX_CALLS:
      return "too_many_calls"
    return [_call(node) for node in nodes] or "not_literal"
  except _Refused as refused:
    return refused.code
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return "not_literal"


def _token_error(text: str) -> str | None:
  position, depth = 0, 0
  while position < len(text):
    match = _TOKEN.match(text, position)
    if match is None:
      return "not_literal"
    kind, token = match.lastgroup, match.group()
    if kind == "open":
      depth += 1
      if depth > MAX_PYTHON_DEPTH:
        return "too_deep"
    elif kind == "close":
      depth -= 1
    elif kind == "name" and keyword.iskeyword(token) and token not in _LITERAL_KEYWORDS:
      return "not_literal"
    elif kind == "number" and len(token) > MAX_DIGITS:
      return "huge_number"
    position = match.end()
  return None


def _call(node: ast.expr) -> ToolCall:
  if not isinstance(node, ast.Call) or node.args:
    raise _Refused("not_literal")
  arguments: dict[str, Any] = {}
  for entry in node.keywords:
    if entry.arg is None:
      raise _Refused("not_literal")
    if entry.arg in arguments:
      raise _Refused("duplicate_key")
    arguments[entry.arg] = _literal(entry.value)
  return ToolCall(_dotted_name(node.func), arguments)


def _dotted_name(node: ast.expr) -> str:
  parts: list[str] = []
  while isinstance(node, ast.Attribute):
    parts.append(node.attr)
    node = node.value
  if not isinstance(node, ast.Name):
    raise _Refused("not_literal")
  return ".".join([node.id, *reversed(parts)])


def _literal(node: ast.expr) -> Any:
  if isinstance(node, ast.Constant):
    return _constant(node.value)
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    value = _literal(node.operand)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
      return -value
  if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
    return _JSON_NAMES[node.id]
  if isinstance(node, (ast.List, ast.Tuple)):
    return [_literal(element) for element in node.elts]
  if isinstance(node, ast.Dict):
    members: dict[str, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
      name = _literal(key) if key is not None else None
      if not isinstance(name, str):
        raise _Refused("not_literal")
      if name in members:
        raise _Refused("duplicate_key")
      members[name] = _literal(value)
    return members
  raise _Refused("not_literal")


def _constant(value: Any) -> Any:
  if isinstance(value, str):
    try:
      value.encode("utf-8")
    except UnicodeEncodeError:
      raise _Refused("lone_surrogate") from None
  elif isinstance(value, float) and not math.isfinite(value):
    raise _Refused("huge_number")
  elif not isinstance(value, (bool, int, float, type(None))):
    raise _Refused("not_literal")
  return value
