from __future__ import annotations

import json

import pytest

from grpo_jax.tasks.schema import ToolCall, ToolSpec, ToolTask
from grpo_jax.tasks.synthetic.prompts import system_message, task_row

ECHO = ToolSpec(
  "echo_word",
  "Echo a word.",
  {
    "type": "object",
    "properties": {"word": {"type": "string"}, "times": {"type": "integer"}},
    "required": ["word"],
  },
)
CALL = ToolCall("echo_word", {"word": "Zürich", "times": 2})


def test_system_style_shows_one_compact_json_line_a_tool():
  lines = system_message([ECHO, ECHO], "system").split("\n")
  assert lines[0] == (
    "Answer with a JSON list of tool calls, ask for a missing required argument, or decline."
  )
  assert lines[1] == "Tools:"
  assert (
    lines[2]
    == lines[3]
    == (
      '{"name": "echo_word", "description": "Echo a word.", "parameters": {"type": "object", '
      '"properties": {"word": {"type": "string"}, "times": {"type": "integer"}}, '
      '"required": ["word"]}}'
    )
  )
  assert len(lines) == 4


@pytest.mark.parametrize("style", ["system", "tools"])
def test_row_reads_back_as_the_task_it_was_written_from(style):
  row = task_row(
    tools=[ECHO],
    request="Echo the word Zürich 2 times",
    ground_truth=[CALL],
    style=style,
    extra_info={"behavior": "execute", "id": "a-1"},
  )
  task = ToolTask.from_row(json.loads(json.dumps(row)))
  assert task.native_tools == (style == "tools")
  assert task.tools == (ECHO,)
  assert [dict(call.arguments) for call in task.calls] == [{"word": "Zürich", "times": 2}]
  assert list(task.calls[0].arguments) == ["word", "times"]
  assert task.request == "Echo the word Zürich 2 times"
  assert task.id == "a-1"


def test_unknown_style_is_rejected_with_the_valid_ones():
  for attempt in (
    lambda: system_message([ECHO], "xml"),
    lambda: task_row(tools=[ECHO], request="x", ground_truth="no", style="xml"),
  ):
    with pytest.raises(ValueError, match="system, tools"):
      attempt()
