from __future__ import annotations

import json

import pytest

from grpo_jax.rewards import PARSE_ERRORS, parse
from grpo_jax.tasks.schema import ToolCall

F = '{"name": "f", "arguments": {"a": 1}}'
G = '{"name": "g.h", "arguments": {"b": "x", "c": [1, null]}}'
CALL_F = ToolCall("f", {"a": 1})
CALL_G = ToolCall("g.h", {"b": "x", "c": [1, None]})


@pytest.mark.parametrize(
  ("text", "calls"),
  [
    (f"[{F}]", (CALL_F,)),
    (f"[{F}, {G}]", (CALL_F, CALL_G)),
    (f"\n [\n{F}\n] \n", (CALL_F,)),
    (f"<tool_call>\n{F}\n</tool_call>", (CALL_F,)),
    (f"<tool_call>\n{F}\n</tool_call>\n<tool_call>\n{G}\n</tool_call>\n", (CALL_F, CALL_G)),
    ('[{"name": "f", "arguments": {}}]', (ToolCall("f", {}),)),
    ('[{"name": "f", "arguments": {"a": "\\ud83d\\ude00"}}]', (ToolCall("f", {"a": "😀"}),)),
  ],
)
@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_both_modes_read_the_two_strict_forms(text, calls, mode):
  result = parse(text, mode)
  assert (result.calls, result.error) == (calls, None)


@pytest.mark.parametrize(
  ("text", "error"),
  [
    ("", "empty"),
    (" \n\t", "empty"),
    ("Sorry, I can't help with that.", "text"),
    ("Which departure_date (day) should I use?", "text"),
    ("[]", "empty_list"),
    ("[1]", "not_a_call"),
    (f"[{F}, 1]", "not_a_call"),
    ('[{"name": "f"}]', "not_a_call"),
    ('[{"name": "", "arguments": {}}]', "not_a_call"),
    ('[{"name": "f", "arguments": "{}"}]', "not_a_call"),
    ('[{"name": "f", "arguments": {}, "id": 1}]', "not_a_call"),
    ('[{"name": "f", "parameters": {}}]', "not_a_call"),
    (f"[{F}", "bad_json"),
    (f"[{F}}}]", "bad_json"),
    ("[{'name': 'f', 'arguments': {}}]", "bad_json"),
    (f"<tool_call>\n{F}\n", "bad_json"),
    (f"<tool_call>\n[{F}]\n</tool_call>", "not_a_call"),
    (f"[{F}] done", "surrounding_text"),
    (f"Sure: [{F}]", "surrounding_text"),
    (f"<tool_call>{F}</tool_call> and <tool_call>{G}</tool_call>", "surrounding_text"),
    (f"[{F}]<tool_call>{F}</tool_call>", "surrounding_text"),
    (F, "other_form"),
    (f"```json\n[{F}]\n```", "other_form"),
    ("f(a=1)", "other_form"),
    ('[{"name": "f", "arguments": {"a": 1, "a": 2}}]', "duplicate_key"),
    ('[{"name": "f", "name": "g", "arguments": {}}]', "duplicate_key"),
    ('[{"name": "f", "arguments": {"a": NaN}}]', "not_finite"),
    ('[{"name": "f", "arguments": {"a": -Infinity}}]', "not_finite"),
    ('[{"name": "f", "arguments": {"a": 1e999}}]', "huge_number"),
    ('[{"name": "f", "arguments": {"a": ' + "9" * 65 + "}}]", "huge_number"),
    ('[{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}]", "huge_number"),
    ('[{"name": "f", "arguments": {"a": "\\ud800"}}]', "lone_surrogate"),
    ('[{"name": "f", "arguments": {"a": "\ud800"}}]', "lone_surrogate"),
    ('[{"name": "f", "arguments": {"a": ' + "[" * 32 + "]" * 32 + "}}]", "too_deep"),
    ("[" * 60_000, "too_deep"),
    ("x" * 65_537, "too_long"),
    ("[" + ",".join([F] * 129) + "]", "too_many_calls"),
    (f"<tool_call>{F}</tool_call>" * 129, "too_many_calls"),
  ],
)
def test_strict_refuses_everything_else_with_a_code(text, error):
  result = parse(text)
  assert (result.calls, result.error) == ((), error)
  assert error in PARSE_ERRORS


@pytest.mark.parametrize(
  ("text", "form"),
  [
    (F, "object"),
    (f"{F}; {G}", "object"),
    (f"{F}\n{G}", "object"),
    (f"I will call this: [{F}, {G}]. Wait.", "list"),
    (f"```json\n[{F}, {G}]\n```", "list"),
    (f"First\n```\n{F}\n```\nthen\n```json\n{G}\n```", "object"),
    (f"Thinking [1] {{x}} ... [{F}]", "list"),
    (f"Sure. <tool_call>\n{F}\n</tool_call> <tool_call>{G}</tool_call>", "blocks"),
    (f"<tool_call>\n{F}", "blocks"),
    (f"<tool_call>\n[{F}, {G}]\n</tool_call>", "blocks"),
    ('{"name": "f", "parameters": {"a": 1}}', "object"),
    ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', "object"),
    ('{"type": "function", "name": "f", "parameters": {"a": 1}}', "object"),
    ('{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}', ""),
    ("f(a=1)", "python"),
    ("[f(a=1)]", "python"),
    ('[f(a=1), g.h(b="x", c=[1, None])]', "python"),
    ('[f(a=1), g.h(b="x", c=(1, null))]', "python"),
    ("```python\n[f(a=1)]\n```", "python"),
    ("I call [f(a=1)] now", "python"),
  ],
)
def test_auto_reads_other_forms(text, form):
  result = parse(text, "auto")
  assert result.error is None
  expected = (CALL_F, CALL_G) if "g.h" in text else (CALL_F,)
  assert result.calls == expected
  assert not form or result.form == form
  assert parse(text).calls == ()


@pytest.mark.parametrize(
  ("text", "error"),
  [
    ("Sorry (really), I can't help (yet)", "text"),
    ("No (really)", "text"),
    ("f(1)", "other_form"),
    ("[f(1)]", "not_literal"),
    ("[f(**{'a': 1})]", "not_literal"),
    ("[f(a=b)]", "not_literal"),
    ("[f(a=1+1)]", "not_literal"),
    ("[f(a=[x for x in y])]", "not_literal"),
    ("[f(a=lambda: 1)]", "not_literal"),
    ("[f(a=__import__('os').system('true'))]", "not_literal"),
    ("[f(a=b'x')]", "not_literal"),
    ("[f(a=1j)]", "not_literal"),
    ("[f(a={1: 2})]", "not_literal"),
    ("[f(a=1, a=2)]", "duplicate_key"),
    ("[f(a={'b': 1, 'b': 2})]", "duplicate_key"),
    ("[f(a=1e999)]", "huge_number"),
    (f"[f(a={'9' * 70})]", "huge_number"),
    (f"[f(a=0x{'f' * 70})]", "huge_number"),
    ("[f(a='\\ud800')]", "lone_surrogate"),
    ("[f(a=" + "[" * 20 + "]" * 20 + ")]", "too_deep"),
    ("[f(a='" + "x" * 9000 + "')]", "too_long"),
    ("[" + ",".join(["f()"] * 129) + "]", "too_many_calls"),
    (f"[{F}] or <tool_call>{F}</tool_call>", "mixed_forms"),
    (f'[{F}] or {{"name": "g", "arg', "mixed_forms"),
    ('{"name": "f", "arguments": {"a": 1, "a": 2}}', "duplicate_key"),
    ('{"name": "f", "description": "", "parameters": {"type": "object"}}', "other_form"),
    ('{"name": "Bob"}', "other_form"),
    ("[1, 2]", "not_a_call"),
    ("plain text", "text"),
    ("", "empty"),
  ],
)
def test_auto_refuses_with_a_code(text, error):
  result = parse(text, "auto")
  assert (result.calls, result.error) == ((), error)
  assert error in PARSE_ERRORS


def test_python_numbers_keep_their_types():
  result = parse("[f(a=-1, b=-1.5, c=1e3, d=True, e=0x10, g=true)]", "auto")
  assert json.dumps(result.calls[0].arguments) == (
    '{"a": -1, "b": -1.5, "c": 1000.0, "d": true, "e": 16, "g": true}'
  )
