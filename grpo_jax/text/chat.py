"""Tool tasks as prompts, through the checkpoint's own chat template."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_jax.schema import ToolSpec, ToolTask

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

# With an argument: some templates walk through `parameters.properties`.
_PROBE_SCHEMA = {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}}
_PROBE = {
  "type": "function",
  "function": {"name": "probe", "description": "probe", "parameters": _PROBE_SCHEMA},
}
_DIRECTIVES = "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"  # of strftime
_CALL_SYNTAX = (
  'To call tools, answer with nothing but a JSON list: [{"name": <tool>, "arguments": {...}}, ...]'
)


def render(
  tokenizer: PreTrainedTokenizerBase,
  task: ToolTask,
  add_generation_prompt: bool = True,
  *,
  date: str = "",
) -> list[int]:
  """The prompt of a task as token ids, equal to transformers' `apply_chat_template`.

  Args:
    tokenizer: the policy's tokenizer, with its chat template.
    task: its messages, and its tools when `native_tools` is set.
    add_generation_prompt: end with the header of the assistant's turn.
    date: the day, as YYYY-MM-DD, on which a template that asks for the time (`strftime_now`) is
      rendered, at its first minute; empty means now, as in transformers.

  Raises:
    ValueError: the checkpoint has no chat template, or the template refuses the messages.
  """
  text = render_text(tokenizer, task, add_generation_prompt, date=date)
  # The template writes every special token itself.
  return tokenizer(text, add_special_tokens=False)["input_ids"]


def render_text(
  tokenizer: PreTrainedTokenizerBase,
  task: ToolTask,
  add_generation_prompt: bool = True,
  *,
  date: str = "",
) -> str:
  """The prompt of a task as text; see `render`.

  A template that takes no tools gets them in the system message, with the syntax of a call.
  """
  tools = task.tools if task.native_tools else ()
  return render_messages(tokenizer, task.messages, tools, add_generation_prompt, date=date)


def render_messages(
  tokenizer: PreTrainedTokenizerBase,
  messages: Sequence[Mapping[str, Any]],
  tools: Sequence[ToolSpec] = (),
  add_generation_prompt: bool = True,
  *,
  date: str = "",
) -> str:
  """A conversation as text, with `tools` on offer; see `render`."""
  chat = [dict(message) for message in messages]
  schemas = [tool.to_chat() for tool in tools]
  if schemas and not supports_tools(tokenizer):
    chat, schemas = _with_tools_in_system(chat, tools), []
  return _apply(tokenizer, chat, schemas, add_generation_prompt, date)


def supports_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
  """Whether the chat template shows the model the `tools` that it is given."""
  chat = [{"role": "user", "content": "hello"}]
  return _apply(tokenizer, chat, [_PROBE], True) != _apply(tokenizer, chat, [], True)


def _apply(
  tokenizer: PreTrainedTokenizerBase,
  chat: list[dict[str, Any]],
  schemas: list[Any],
  add_generation_prompt: bool,
  date: str = "",
) -> str:
  import jinja2

  if not tokenizer.chat_template:
    raise ValueError(
      f"{tokenizer.name_or_path} has no chat template: use an instruction-tuned checkpoint, or put "
      "a chat_template.jinja into its folder"
    )
  try:
    text = tokenizer.apply_chat_template(
      chat,
      tools=schemas or None,
      chat_template=_of_that_day(tokenizer.get_chat_template(tools=schemas or None), date),
      add_generation_prompt=add_generation_prompt,
      tokenize=False,
    )
  except jinja2.exceptions.TemplateError as error:
    raise ValueError(
      f"the chat template of {tokenizer.name_or_path} refuses these messages: {error}"
    ) from error
  return str(text)


def _of_that_day(template: str, date: str) -> str:
  """The template with the date in place of the clock.

  transformers hands templates no functions but its own, so that a macro takes `strftime_now`'s
  place: it replaces every directive of the format by what that day has for it.
  """
  if not date or "strftime_now" not in template:
    return template
  day = datetime.datetime.fromisoformat(date)
  directives = [f"%{flag}{letter}" for letter in _DIRECTIVES for flag in ("", "-")]
  shown = [("%%", "\0"), *((text, day.strftime(text)) for text in directives), ("\0", "%")]
  steps = "".join(f"|replace({json.dumps(old)}, {json.dumps(new)})" for old, new in shown)
  # The line's end belongs to the block before it: jinja drops it, as transformers sets it up.
  return f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}\n{template}"


def _with_tools_in_system(
  chat: list[dict[str, Any]], tools: Sequence[ToolSpec]
) -> list[dict[str, Any]]:
  lines = [json.dumps(tool.to_json(), ensure_ascii=False) for tool in tools]
  text = "\n".join((_CALL_SYNTAX, "Tools:", *lines))
  if chat and chat[0].get("role") == "system":
    first = {**chat[0], "content": f"{chat[0].get('content') or ''}\n\n{text}".lstrip()}
    return [first, *chat[1:]]
  return [{"role": "system", "content": text}, *chat]
