"""What is in the data, as a table to read before training."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from grpo_jax.tasks.schema import BEHAVIORS, ToolTask

SHOWN_TOOLS = 12


def data_summary(
  tasks: Sequence[ToolTask],
  prompt_tokens: Sequence[int] | None = None,
  max_prompt_tokens: int | None = None,
) -> str:
  """Rows, behaviors, tools and lengths of the data as an aligned text table.

  Args:
    tasks: the data; at least one.
    prompt_tokens: the length of each task's rendered prompt, in tokens, where it is known.
    max_prompt_tokens: the limit above which a prompt does not fit.
  """
  rows = [("rows", f"{len(tasks):,}")]
  behaviors = Counter(task.behavior for task in tasks)
  rows.append(("behaviours", _shares({name: behaviors[name] for name in BEHAVIORS}, len(tasks))))
  prompts = Counter(json.dumps([*map(dict, task.messages)], default=dict) for task in tasks)
  if repeated := len(tasks) - len(prompts):
    rows.append(("repeated", f"{repeated:,} rows have the prompt of another row"))
  tools = Counter(task.tool_name or "(none)" for task in tasks)
  shown = dict(tools.most_common(SHOWN_TOOLS))
  if len(tools) > SHOWN_TOOLS:
    shown[f"{len(tools) - SHOWN_TOOLS} others"] = len(tasks) - sum(shown.values())
  rows.append(("tools", _shares(shown, len(tasks))))
  offered = [len(task.tools) for task in tasks]
  rows.append(("tools on offer", _spread(offered)))
  if prompt_tokens is not None:
    rows.append(("prompt tokens", _spread(prompt_tokens)))
    if max_prompt_tokens is not None:
      over = sum(length > max_prompt_tokens for length in prompt_tokens)
      rows.append(("too long", f"{over:,} prompts have more than {max_prompt_tokens:,} tokens"))
  width = max(len(name) for name, _ in rows)
  return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _shares(counts: Mapping[str, int], total: int) -> str:
  return " · ".join(f"{name} {count:,} ({count / total:.0%})" for name, count in counts.items())


def _spread(values: Sequence[int]) -> str:
  ordered = sorted(values)
  high = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
  return f"min {ordered[0]:,} · median {median(ordered):,.0f} · 95% {high:,} · max {ordered[-1]:,}"
