from __future__ import annotations

from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.summary import data_summary


def task(tool: str, answer: str, request: str = "hi") -> ToolTask:
  row = {"prompt": request, "reward_model": {"ground_truth": answer}, "extra_info": {"tool": tool}}
  return ToolTask.from_row(row)


def test_summary_counts_rows_behaviours_tools_and_what_is_too_long():
  tasks = [
    task("fly", '[{"name": "fly", "arguments": {}}]', "go"),
    task("fly", "Which city?"),
    task("walk", "Sorry, no."),
    task("", "Sorry, no.", "other"),
  ]
  lines = data_summary(tasks, [10, 20, 40, 30], 25).split("\n")
  read = {line[:14].strip(): line[14:].strip() for line in lines}
  assert read == {
    "rows": "4",
    "behaviours": "execute 1 (25%) · clarify 1 (25%) · refuse 2 (50%)",
    "repeated": "1 rows have the prompt of another row",
    "tools": "fly 2 (50%) · walk 1 (25%) · (none) 1 (25%)",
    "tools on offer": "min 0 · median 0 · 95% 0 · max 0",
    "prompt tokens": "min 10 · median 25 · 95% 40 · max 40",
    "too long": "2 prompts have more than 25 tokens",
  }


def test_rare_tools_are_added_up():
  tasks = [task(f"tool{i:02}", "no", str(i)) for i in range(20)]
  assert "8 others 8 (40%)" in data_summary(tasks)
