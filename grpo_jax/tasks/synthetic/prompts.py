"""How a tool task is written as a prompt: the system message, and the row of the data contract.

The generator, the supervised corpus of the embedded policy and chat all use these functions, so a
policy sees one form in training and in evaluation.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from grpo_jax.tasks.schema import ToolCall, ToolSpec

Style = Literal["system", "tools"]
STYLES: tuple[Style, ...] = get_args(Style)

SYSTEM_INSTRUCTION = (
  "Answer with a JSON list of tool calls, ask for a missing required argument, or decline."
)
# With native tools the chat template itself explains the call syntax.
NATIVE_INSTRUCTION = "Call a tool, ask for a missing required argument, or decline."


def system_message(
  tools: Sequence[ToolSpec], style: Style = "system", wording: str | None = None
) -> str:
  """The system message that goes with `tools`.

  Args:
    tools: the tools on offer, in the order in which they are shown.
    style: `system` writes one compact JSON line a tool into the message; `tools` leaves the schemas
      to the chat template and returns the instruction alone.
    wording: of the message, in `system` style with {tools} where the schemas go; the project's own
      when None.

  Raises:
    ValueError: `style` is not one of `STYLES`.
  """
  if style not in STYLES:
    raise ValueError(f"unknown prompt style {style!r}; expected one of {', '.join(STYLES)}")
  if style == "tools":
    return NATIVE_INSTRUCTION if wording is None else wording
  lines = "\n".join(json.dumps(tool.to_json(), ensure_ascii=False) for tool in tools)
  wording = f"{SYSTEM_INSTRUCTION}\nTools:\n{{tools}}" if wording is None else wording
  return wording.replace("{tools}", lines)


def task_row(
  *,
  tools: Sequence[ToolSpec],
  request: str,
  ground_truth: Sequence[ToolCall] | str,
  style: Style = "system",
  system: str | None = None,
  extra_info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """One row of the JSONL data contract (system message, request, ground truth).

  Args:
    tools: the tools on offer, in the order in which they are shown.
    request: the user's message.
    ground_truth: the wanted calls, or the text of a right question or refusal.
    style: where the schemas go, see `system_message`. The ground truth is a JSON list in both
      styles: it is what the reward reads, not what the policy must copy.
    system: the system message's wording, see `system_message`; with an empty one the row has none.
    extra_info: `behavior`, `id` and so on, kept as they are.

  Raises:
    ValueError: `style` is not one of `STYLES`.
  """
  message = system_message(tools, style, system)
  prompt = [{"role": "system", "content": message}] if message else []
  row: dict[str, Any] = {"prompt": [*prompt, {"role": "user", "content": request}]}
  if style == "tools":
    row["tools"] = [tool.to_chat() for tool in tools]
  if not isinstance(ground_truth, str):
    ground_truth = json.dumps([call.to_json() for call in ground_truth], ensure_ascii=False)
  row["reward_model"] = {"style": "rule", "ground_truth": ground_truth}
  row["extra_info"] = dict(extra_info or {})
  return row
