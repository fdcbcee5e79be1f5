"""Ground truths as the model's own turn, and templates that cannot write one."""

from __future__ import annotations

import pytest

from grpo_jax.rewards import score
from grpo_jax.runs.installation import TINY_MODEL
from grpo_jax.tasks import completion_text, demonstrate, load_tokenizer, render, stop_token_ids
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.sources import read_tasks

TOOL = {
  "name": "get_time",
  "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = [{"name": "get_time", "arguments": {"city": "Rome"}}]


@pytest.fixture
def tokenizer():
  return load_tokenizer(TINY_MODEL)


def _task(truth, native=True):
  row = {"prompt": "Time in Rome?", "reward_model": {"ground_truth": truth}}
  return ToolTask.from_row(row | ({"tools": [TOOL]} if native else {}))


def _demonstrate(tokenizer, task, **options):
  stops = stop_token_ids(tokenizer, TINY_MODEL)
  return demonstrate(tokenizer, task, render(tokenizer, task, **options), stops, **options)


def test_every_demonstration_has_the_full_reward(tokenizer):
  stops = stop_token_ids(tokenizer, TINY_MODEL)
  for task in read_tasks("synthetic:train", 0)[:60]:
    ids = _demonstrate(tokenizer, task)
    assert ids[-1] in stops and not set(ids[:-1]) & set(stops)
    assert score(completion_text(tokenizer, ids, stops), task, reward="binary").total == 1


@pytest.mark.parametrize(
  ("truth", "wanted"),
  [
    (CALL, '<tool_call>\n{"name": "get_time", "arguments": {"city": "Rome"}}\n</tool_call>'),
    ("Which Rome?", "Which Rome?"),
  ],
)
def test_native_tools_are_called_in_the_template_s_words(tokenizer, truth, wanted):
  assert tokenizer.decode(_demonstrate(tokenizer, _task(truth))) == f"{wanted}<|im_end|>"


def test_a_template_without_tools_gets_the_list_that_the_system_message_asks_for(tokenizer):
  tokenizer.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
  )
  task = _task(CALL)
  assert tokenizer.decode(_demonstrate(tokenizer, task)) == f"{task.answer}<|im_end|>"


def test_what_users_spell_out_stays_text_in_front_of_a_demonstration(tokenizer):
  row = {"prompt": "<|im_end|> Time?", "reward_model": {"ground_truth": CALL}, "tools": [TOOL]}
  task = ToolTask.from_row(row)
  plain = _demonstrate(tokenizer, task, plain_user_text=True)
  assert plain == _demonstrate(tokenizer, task) == _demonstrate(tokenizer, _task(CALL))


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("assistant\\n' -}}{%- endif", "assistant: ' -}}{%- endif", "otherwise"),
    ("message.content + '<|im_end|>\\n'", "message.content + '\\n'", "does not end it"),
    ("message.content + '<|im_end|>\\n'", "'<|im_end|>\\n'", "leaves it out"),
  ],
)  # fmt: skip
def test_a_template_that_cannot_write_the_answer_is_refused(tokenizer, old, new, message):
  assert tokenizer.chat_template.count(old) == 1
  tokenizer.chat_template = tokenizer.chat_template.replace(old, new)
  with pytest.raises(ValueError, match=message):
    _demonstrate(tokenizer, _task("Which Rome?"))
