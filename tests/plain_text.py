"""What must hold of `plain_user_text` with any tokenizer and any text."""

from __future__ import annotations

import re

from grpo_jax.tasks import encode_messages


def assert_plain_text_changes_nothing_else(tokenizer, texts):
  """Special tokens are the template's alone; without any in the texts, the ids are the same.

  Args:
    tokenizer: one whose template is Qwen's.
    texts: of user and tool messages in turn.
  """
  chat = lambda contents: [
    {"role": ("user", "tool")[i % 2], "content": content} for i, content in enumerate(contents)
  ]
  added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
  plain = encode_messages(tokenizer, chat(texts), plain_user_text=True)
  normal = encode_messages(tokenizer, chat(texts))
  neutral = encode_messages(tokenizer, chat(["x"] * len(texts)))
  control = {added[text] for text in added if re.match(r"<\||</?tool", text)}
  assert [i for i in plain if i in control] == [i for i in neutral if i in control]
  assert tokenizer.decode(plain) == tokenizer.decode(normal)
  if not any(text in content for content in texts for text in added):
    assert plain == normal
