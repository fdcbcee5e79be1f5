"""The right answer to a task as the model itself would have to write it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from grpo_jax.tasks.chat import encode_messages, supports_tools
from grpo_jax.tasks.schema import ToolTask

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

CallFormat = Literal["template", "json"]


def demonstrate(
  tokenizer: PreTrainedTokenizerBase,
  task: ToolTask,
  prompt: Sequence[int],
  stop_ids: Collection[int],
  *,
  call_format: CallFormat = "template",
  date: str = "",
  plain_user_text: bool = False,
) -> list[int]:
  """The ground truth of a task as token ids: what the chat template writes behind the prompt.

  Calls of tools that the template shows are rendered by it, from `tool_calls`, or are a JSON list;
  where the system message has the tools, they are the JSON list that it asks for.

  Args:
    tokenizer: the policy's tokenizer, with its chat template.
    task: with a right answer.
    prompt: the task's, from `render` with the same date and `plain_user_text`.
    stop_ids: tokens that end a completion.
    call_format: `template`, or `json` for a model that cannot write its template's call tokens: in
      Qwen2.5-Coder they, like every token that it was not trained on, have one and the same
      embedding, and a tied head tells equal rows apart by nothing.
    date: see `render`.
    plain_user_text: see `render`.

  Returns:
    The answer up to the end-of-turn token, which is among `stop_ids` and belongs to it.

  Raises:
    ValueError: the rendered conversation does not begin with the prompt, or does not end the turn.
  """
  tools = task.tools if task.native_tools else ()
  called = call_format == "template" and bool(tools) and supports_tools(tokenizer)
  chat = [*task.messages, _turn(task, called=called)]
  whole = encode_messages(tokenizer, chat, tools, False, date=date, plain_user_text=plain_user_text)
  start, named = len(prompt), f"the demonstration of {task.id or repr(task.request)}"
  if whole[:start] != list(prompt):
    raise ValueError(
      f"{named}: the chat template of {tokenizer.name_or_path} writes a finished conversation "
      "otherwise than the prompt that it answers"
    )
  ends = [i for i, token in enumerate(whole) if i >= start and token in stop_ids]
  if not ends or ends[0] == start:
    what = "leaves it out" if ends else "does not end it with a stop token"
    raise ValueError(f"{named}: the chat template of {tokenizer.name_or_path} {what}")
  return whole[start : ends[0] + 1]


def _turn(task: ToolTask, *, called: bool) -> Mapping[str, Any]:
  """The assistant's message: calls for the template to write, or text."""
  if not (called and task.calls):
    return {"role": "assistant", "content": task.answer}
  calls = [{"type": "function", "function": call.to_json()} for call in task.calls]
  return {"role": "assistant", "content": "", "tool_calls": calls}
