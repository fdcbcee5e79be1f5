"""What holds for any text: no exception, a documented code, a total in its range, and soon."""

from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.rewards import ERRORS, PARSE_ERRORS, PARSE_MODES, TIERS, parse, score
from grpo_jax.tasks.schema import ToolCall, ToolTask
from grpo_jax.tasks.synthetic.splits import generate

TASKS = [ToolTask.from_row(row) for row in generate(3, "train", 24)] + [
  ToolTask.from_row(
    {
      "prompt": "x",
      "tools": [{"name": "f", "parameters": {"properties": {"a": {"type": "number"}}}}],
      "reward_model": {"ground_truth": [{"name": "f", "arguments": {"a": i}} for i in range(4)]},
    }
  ),
  ToolTask.from_row(
    {
      "prompt": "x",
      "tools": [
        {
          "name": "f",
          "parameters": {
            "properties": {"a": {"type": "float"}, "b": {"type": "array"}, "c": {"type": "dict"}}
          },
        }
      ],
      "reward_model": {"ground_truth": [{"name": "f", "arguments": {"a": 1.5}}]},
      "extra_info": {
        "possible_answers": [{"f": {"a": [1.5], "b": [["x"], ""], "c": [{"k": ["y"]}, ""]}}]
      },
    }
  ),
  ToolTask.from_row({"prompt": "x", "reward_model": {"ground_truth": "Which one?"}}),
]

_FRAGMENTS = (
  '[ ] { } ( ) , : ; " \' \\ \\" ``` ```json\n <tool_call> </tool_call> <|python_tag|> = -1 1e999 '
  'NaN null true 0.5 é \ud800 \\ud800 ? . \n {"name": "arguments": "parameters": "name":"f" '
  '{"name":"f","arguments":{"a":1}} [{"name":"f","arguments":{}}] f(a=1) [f(a=1)] f( city '
  "departure_date Which Sorry I can't help without tool none of my Could you tell me"
)
FRAGMENTS = _FRAGMENTS.split(" ")
TEXTS = st.one_of(
  st.text(st.characters(exclude_categories=()), max_size=200),
  st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(" ".join),
  st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join),
)
JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-(10**30), 10**30)
  | st.floats(allow_nan=False, allow_infinity=False)
  | st.text(max_size=20),
  lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
  ),
  max_leaves=8,
)
CALLS = st.lists(
  st.builds(ToolCall, st.text(min_size=1, max_size=8), st.dictionaries(st.text(max_size=8), JSON)),
  min_size=1,
  max_size=4,
)


@settings(deadline=None, max_examples=100)
@given(text=TEXTS, index=st.integers(0, len(TASKS) - 1))
def test_any_text_scores_in_range_with_documented_codes(text, index):
  task = TASKS[index]
  for mode in PARSE_MODES:
    parsed = parse(text, mode)
    assert bool(parsed.calls) == (parsed.error is None)
    assert parsed.error is None or parsed.error in PARSE_ERRORS
    for tiers in TIERS:
      found = score(text, task, tiers, mode)
      assert 0.0 <= found.total <= 1.0
      assert found.error is None or found.error in ERRORS
      assert found.shown in ("execute", "clarify", "refuse", "other")
      assert all(math.isfinite(value) for value in found.parts.values())
      assert found == score(text, task, tiers, mode)
      if tiers != "toolrl":
        assert (found.total == 1.0) == (found.error is None)


@settings(deadline=None, max_examples=40)
@given(calls=CALLS)
def test_any_calls_survive_both_strict_forms(calls):
  written = [json.dumps(call.to_json(), ensure_ascii=False) for call in calls]
  as_list = f"[{', '.join(written)}]"
  as_blocks = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)
  for mode in PARSE_MODES:
    assert parse(as_list, mode).calls == tuple(calls)
    assert parse(as_blocks, mode).calls == tuple(calls)


@settings(deadline=None, max_examples=40)
@given(calls=CALLS, tiers=st.sampled_from(TIERS))
def test_the_wanted_calls_earn_full_marks_and_in_any_order(calls, tiers):
  row = {"prompt": "x", "reward_model": {"ground_truth": [call.to_json() for call in calls]}}
  task = ToolTask.from_row(row)
  assert score(task.answer, task, tiers).total == 1.0
  reverse = json.dumps([call.to_json() for call in reversed(calls)])
  assert score(reverse, task, tiers).total == 1.0


@settings(deadline=None, max_examples=40)
@given(text=TEXTS)
def test_auto_takes_whatever_strict_takes(text):
  strict = parse(text)
  if strict.calls:
    assert parse(text, "auto") == strict


BIG = 65_536
ADVERSARIAL = [
  *("[", "{", '"', '\\"', "\\", "(", "?", ". ", "\n", "a", "é", "\ud800", "1", "```"),
  *('{"a":', '[{"', '{"":', "f(", "[f(a=", '{"a":1},', "<tool_call>", "<tool_call>{", "i can't "),
  *('{"name":"f","arguments":{}}', '{"name":"f","arguments":{}},', "my tools ", "sorry ", "word "),
]


@pytest.mark.parametrize("prefix", ["", '[{"name":"', "[f(a=", "i can't "])
def test_64_kib_of_adversarial_text_take_under_50_ms(prefix):
  for piece in ADVERSARIAL:
    text = (prefix + piece * BIG)[:BIG]
    for task in TASKS[-3:]:
      for mode in PARSE_MODES:
        # Another process may take the caches, but hardly four times.
        took = (seconds(text, task, mode) for _ in range(4))
        assert any(one < 0.05 for one in took), (prefix, piece, mode)


def made_up(number: int) -> dict[str, object]:
  return {f"{i:x}": 1 for i in range(number)}


@pytest.mark.parametrize(
  "calls",
  [
    [{"name": "f", "arguments": made_up(6000)}],
    [{"name": "f", "arguments": made_up(1500)}] * 4,
    [{"name": "f", "arguments": {"a": "a" + "\u0315\u0300" * 16_000}}],
    [{"name": "f", "arguments": {"a": ["x"] * 7_500, "b": ["x"] * 7_500}}],
    [{"name": "f", "arguments": {"a": {"k": "y"}, "c": made_up(6000)}}],
  ],
)
def test_64_kib_of_well_formed_calls_take_under_50_ms(calls):
  text = json.dumps(calls, ensure_ascii=False, separators=(",", ":"))
  assert len(text.encode()) <= BIG
  wanted = [{"name": "f", "arguments": {"a": "Zürich"}}] * len(calls)
  task = ToolTask.from_row({"prompt": "x", "reward_model": {"ground_truth": wanted}})
  for one in (task, *TASKS[-3:]):
    assert any(seconds(text, one, "strict") < 0.05 for _ in range(4))


def seconds(text: str, task: ToolTask, mode: str) -> float:
  start = time.process_time()
  score(text, task, "toolrl", mode)
  return time.process_time() - start


def test_over_10_000_completions_a_second_are_scored():
  answers = [(task.answer, task) for task in TASKS[:24]]
  answers += [(TASKS[(i + 7) % 24].answer, task) for i, task in enumerate(TASKS[:24])]
  # About 64 tokens each: four characters a token.
  answers = [
    (a if a[0] == "[" else (a + " Thank you for asking me today.")[:250], t) for a, t in answers
  ]
  best = 0.0
  for _ in range(5):
    start = time.process_time()
    for answer, task in answers * 4:
      score(answer, task)
    best = max(best, 4 * len(answers) / (time.process_time() - start))
  assert best > 10_000, f"{best:.0f} a second"
