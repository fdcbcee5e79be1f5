"""Tokenizers and chat templates: tasks to token ids, token ids to text."""

from grpo_jax.text.chat import (
  encode_messages,
  render,
  render_messages,
  render_text,
  supports_tools,
)
from grpo_jax.text.tokenizer import completion_text, load_tokenizer, stop_token_ids

__all__ = [
  "completion_text",
  "encode_messages",
  "load_tokenizer",
  "render",
  "render_messages",
  "render_text",
  "stop_token_ids",
  "supports_tools",
]
