"""Python-call syntax, as in the Berkeley leaderboard: `[f(a=1), g(b="x")]`; literals only."""

import ast
import keyword
import math
import re
import warnings
from typing import Any

from grpo_jax.files.json_text import MAX_DIGITS, Refused
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


def read_python_calls(text: str) -> list[ToolCall]:
  """Reads one call or a list of calls, with keyword arguments that are literals.

  Nothing is evaluated: the text goes through `ast.parse`, and its nodes are read. `true`, `false`
  and `null` count as literals; tuples become lists.

  Raises:
    Refused: with the code `not_literal`, `too_long`, `too_deep`, `duplicate_key`, `huge_number`,
      `lone_surrogate` or `too_many_calls`.
  """
  if len(text) > MAX_PYTHON_CHARS:
    raise Refused("too_long")
  _check_tokens(text)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # "\d" in a string is the model's business
      body = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    raise Refused("not_literal") from None
  nodes = body.elts if isinstance(body, ast.List) else [body]
  if len(nodes) > MAX_CALLS:
    raise Refused("too_many_calls")
  if not nodes:
    raise Refused("not_literal")
  return [_call(node) for node in nodes]


def _check_tokens(text: str) -> None:
  position, depth = 0, 0
  while position < len(text):
    match = _TOKEN.match(text, position)
    if match is None:
      raise Refused("not_literal")
    kind, token = match.lastgroup, match.group()
    depth += (kind == "open") - (kind == "close")
    if depth > MAX_PYTHON_DEPTH:
      raise Refused("too_deep")
    if kind == "name" and keyword.iskeyword(token) and token not in _LITERAL_KEYWORDS:
      raise Refused("not_literal")
    if kind == "number" and len(token) > MAX_DIGITS:
      raise Refused("huge_number")
    position = match.end()


def _call(node: ast.expr) -> ToolCall:
  if not isinstance(node, ast.Call) or node.args:
    raise Refused("not_literal")
  arguments: dict[str, Any] = {}
  for entry in node.keywords:
    if entry.arg is None:
      raise Refused("not_literal")
    if entry.arg in arguments:
      raise Refused("duplicate_key")
    arguments[entry.arg] = _literal(entry.value)
  return ToolCall(_dotted_name(node.func), arguments)


def _dotted_name(node: ast.expr) -> str:
  parts: list[str] = []
  while isinstance(node, ast.Attribute):
    parts.append(node.attr)
    node = node.value
  if not isinstance(node, ast.Name):
    raise Refused("not_literal")
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
        raise Refused("not_literal")
      if name in members:
        raise Refused("duplicate_key")
      members[name] = _literal(value)
    return members
  raise Refused("not_literal")


def _constant(value: Any) -> Any:
  if isinstance(value, str):
    try:
      value.encode("utf-8")
    except UnicodeEncodeError:
      raise Refused("lone_surrogate") from None
  elif isinstance(value, float) and not math.isfinite(value):
    raise Refused("huge_number")
  elif not isinstance(value, (bool, int, float, type(None))):
    raise Refused("not_literal")
  return value
