"""Tool tasks: what they are, read from files or generated, as a model reads them."""

from grpo_jax.tasks.batches import batch_at, bucket_length, pad_prompts
from grpo_jax.tasks.chat import (
  encode_messages,
  render,
  render_messages,
  render_text,
  supports_tools,
)
from grpo_jax.tasks.demonstrations import demonstrate
from grpo_jax.tasks.jsonl import DataError, data_sha256, load_tasks, write_jsonl
from grpo_jax.tasks.schema import BEHAVIORS, ToolCall, ToolSpec, ToolTask
from grpo_jax.tasks.summary import data_summary
from grpo_jax.tasks.synthetic.splits import SPLIT_SIZES, SPLITS, generate
from grpo_jax.tasks.synthetic.tools import evaluation_words
from grpo_jax.tasks.tokenizer import completion_text, load_tokenizer, stop_token_ids
