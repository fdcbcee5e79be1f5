"""What is timed: the shape of a model and the size of a step's batch."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from grpo_jax.models import DecoderConfig
from grpo_jax.models.compute_dtype import compute_dtype
from grpo_jax.settings import Settings, setting


def qwen2(head_dim: int = 64, **sizes: int) -> DecoderConfig:
  """A decoder of Qwen 2.5's kind, with the sizes that are given."""
  return DecoderConfig(
    **sizes,  # type: ignore[arg-type]
    head_dim=head_dim,
    rope_theta=1e6,
    tie_embeddings=True,
    max_position_embeddings=2048,
    eos_token_ids=(1,),
    pad_token_id=0,
  )


# Qwen 2.5 in small, 23.6 and 134.5 million parameters, and its 0.5B and 1.5B.
SHAPES = {
  "S": qwen2(
    vocab_size=16384, hidden_size=384, intermediate_size=1536, num_layers=8, num_heads=6,
    num_kv_heads=2,
  ),
  "M": qwen2(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9,
    num_kv_heads=3,
  ),
  "Q": qwen2(
    vocab_size=151936, hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14,
    num_kv_heads=2,
  ),
  "Q1.5": qwen2(
    vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_layers=28, num_heads=12,
    num_kv_heads=2, head_dim=128,
  ),
}  # fmt: skip


@dataclass(frozen=True)
class Workload(Settings):
  """The batch of one step; every completion runs to its full length, so that the work is fixed."""

  prompts: int = setting(4, "prompts a step (P)", low=1)
  prompt_tokens: int = setting(256, "length of each prompt (S)", unit="tokens", low=1)
  group_size: int = setting(
    8, "candidates sampled for each prompt (G), which are compared with each other", low=2
  )
  completion_tokens: int = setting(
    64, "length of each candidate (T), or the longest", unit="tokens", low=1
  )

  @property
  def rows(self) -> int:
    """Completions a step, P * G."""
    return self.prompts * self.group_size

  @property
  def tokens(self) -> int:
    """Sampled tokens a step, P * G * T."""
    return self.rows * self.completion_tokens


def read_shape(shape: str, dtype: str = "float32") -> DecoderConfig:
  """The decoder of a named shape, or of a Hugging Face `config.json`.

  Args:
    shape: a name in `SHAPES` or a path that ends in `.json`.
    dtype: compute dtype; `auto` is what is fast here.

  Raises:
    ValueError: neither a known name nor a file of a decoder that is supported.
  """
  if shape in SHAPES:
    return in_dtype(SHAPES[shape], dtype)
  path = Path(shape)
  if path.suffix != ".json" or not path.is_file():
    raise ValueError(f"--shape={shape}; expected {', '.join(SHAPES)} or a config.json that exists")
  try:
    config = DecoderConfig.from_hf(json.loads(path.read_text(encoding="utf-8")))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  return in_dtype(config, dtype)


def in_dtype(config: DecoderConfig, dtype: str) -> DecoderConfig:
  """The decoder in a compute dtype; `auto` is what is fast here."""
  return dataclasses.replace(config, dtype=compute_dtype(dtype, config))
