"""Tool tasks as prompts, through the checkpoint's own chat template."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_jax.tasks.schema import ToolSpec, ToolTask

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
  plain_user_text: bool = False,
) -> list[int]:
  """The prompt of a task as token ids, equal to transformers' `apply_chat_template`.

  Args:
    tokenizer: the policy's tokenizer, with its chat template.
    task: its messages, and its tools when `native_tools` is set.
    add_generation_prompt: end with the header of the assistant's turn.
    date: the day, as YYYY-MM-DD, on which a template that asks for the time (`strftime_now`) is
      rendered, at its first minute; empty means now, as in transformers.
    plain_user_text: special tokens that users and tools spell out are text, not tokens, so that no
      message can end itself and open one of another role. Off, as in transformers.

  Raises:
    ValueError: the checkpoint has no chat template, or the template refuses the messages.
  """
  tools = task.tools if task.native_tools else ()
  return encode_messages(
    tokenizer,
    task.messages,
    tools,
    add_generation_prompt,
    date=date,
    plain_user_text=plain_user_text,
  )


def encode_messages(
  tokenizer: PreTrainedTokenizerBase,
  messages: Sequence[Mapping[str, Any]],
  tools: Sequence[ToolSpec] = (),
  add_generation_prompt: bool = True,
  *,
  date: str = "",
  plain_user_text: bool = False,
) -> list[int]:
  """A conversation as token ids, with `tools` on offer; see `render`."""
  # The template writes every special token itself.
  encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
  shown = lambda chat: render_messages(tokenizer, chat, tools, add_generation_prompt, date=date)
  text = shown(messages)
  if not plain_user_text:
    return encode(text)
  # A mark after the first character of each control token: whatever the template does with it, the
  # token is never whole, and where the text is cut at the marks no other character has changed.
  mark = next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in text)  # of no meaning
  control = _control_tokens(tokenizer)
  theirs = [_marked_message(message, control, mark) for message in messages]
  if theirs == list(messages):
    return encode(text)
  first, *rest = shown(theirs).split(mark)
  ids, newline = encode(first), encode("\n")
  for piece in rest:
    # After a newline, since SentencePiece puts a space before what begins a text.
    after = encode(f"\n{piece}")
    ids += after[len(newline) :] if after[: len(newline)] == newline else encode(piece)
  return ids


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
  """Matches, without taking it in, a special token or another added one that the template holds.

  Further added tokens may be ordinary text, such as runs of spaces or HTML tags. (A special token
  of one character, which no family has, would stay one: it is the character.)
  """
  templates = tokenizer.chat_template or ""
  template = templates if isinstance(templates, str) else "\0".join(templates.values())
  added = tokenizer.added_tokens_decoder.values()
  found = {token.content for token in added if token.special or token.content in template}
  every = [re.escape(text) for text in found | set(tokenizer.all_special_tokens) if text.strip()]
  return re.compile(f"(?={'|'.join(every) or '(?!)'})")


def _marked_message(
  message: Mapping[str, Any], control: re.Pattern[str], mark: str
) -> Mapping[str, Any]:
  if message.get("role") not in ("user", "tool"):
    return message
  return {k: v if k == "role" else _marked(v, control, mark) for k, v in message.items()}


def _marked(value: Any, control: re.Pattern[str], mark: str) -> Any:
  """A message's value with a mark inside of every control token in its texts."""
  if isinstance(value, str):
    cuts = [match.start() + 1 for match in control.finditer(value)]
    ends = zip([0, *cuts], [*cuts, None], strict=True)
    return mark.join(value[start:end] for start, end in ends)
  if isinstance(value, Mapping):
    pairs = ((_marked(k, control, mark), _marked(v, control, mark)) for k, v in value.items())
    return dict(pairs)
  if isinstance(value, list | tuple):
    return [_marked(entry, control, mark) for entry in value]
  return value


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
