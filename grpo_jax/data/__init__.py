"""Tool tasks: read from files, made by a seeded generator, drawn in batches."""

from grpo_jax.data.batches import batch_at, bucket_length, pad_prompts
from grpo_jax.data.jsonl import DataError, data_sha256, load_tasks, write_jsonl
from grpo_jax.data.summary import data_summary
from grpo_jax.data.synthetic import SPLIT_SIZES, SPLITS, generate
from grpo_jax.data.tools import evaluation_words

__all__ = [
  "SPLITS",
  "SPLIT_SIZES",
  "DataError",
  "batch_at",
  "bucket_length",
  "data_sha256",
  "data_summary",
  "evaluation_words",
  "generate",
  "load_tasks",
  "pad_prompts",
  "write_jsonl",
]
