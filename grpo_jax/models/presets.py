"""The seven Qwen 2.5 sizes by name, so that a run can be planned without fetching anything.

Values are those of `config.json` in the `Qwen/Qwen2.5-*-Instruct` repositories on the Hugging Face
hub; `tests/models/test_presets.py` checks them against the published parameter counts.
"""

from __future__ import annotations

import re
from pathlib import Path

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.weights import load_config

# Size: V, D, F, layers, query heads, key/value heads, tied embeddings.
_QWEN2_5: dict[str, tuple[int, int, int, int, int, int, bool]] = {
  "0.5b": (151936, 896, 4864, 24, 14, 2, True),
  "1.5b": (151936, 1536, 8960, 28, 12, 2, True),
  "3b": (151936, 2048, 11008, 36, 16, 2, True),
  "7b": (152064, 3584, 18944, 28, 28, 4, False),
  "14b": (152064, 5120, 13824, 48, 40, 8, False),
  "32b": (152064, 5120, 27648, 64, 40, 8, False),
  "72b": (152064, 8192, 29568, 80, 64, 8, False),
}
PRESET_NAMES = tuple(f"qwen2.5-{size}" for size in _QWEN2_5)


def preset(name: str) -> DecoderConfig | None:
  """The configuration that a name stands for, without any file.

  Args:
    name: `qwen2.5-7b` or a hub id such as `Qwen/Qwen2.5-7B-Instruct` or `Qwen/Qwen2.5-7B`, in any
      case.

  Returns:
    The `DecoderConfig` of the Instruct model (float32; its shapes are the base model's too), or
    None when the name is not one of these.
  """
  found = re.fullmatch(r"(?:qwen/)?qwen2\.5-([\d.]+b)(?:-instruct)?", name.lower())
  if found is None or found[1] not in _QWEN2_5:
    return None
  vocab, width, mlp, layers, heads, kv_heads, tied = _QWEN2_5[found[1]]
  return DecoderConfig(
    vocab_size=vocab,
    hidden_size=width,
    intermediate_size=mlp,
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=width // heads,
    rope_theta=1e6,
    tie_embeddings=tied,
    eos_token_ids=(151645, 151643),
    bos_token_id=151643,
    pad_token_id=151643,
  )


def config_named(model: str) -> DecoderConfig:
  """The configuration of a preset, a `config.json`, a checkpoint folder or a hub id.

  Presets come first, so that a Qwen 2.5 of a known size needs no network.

  Raises:
    FileNotFoundError: nothing of that name.
    ValueError: the decoder lacks a feature that the checkpoint uses.
  """
  path = Path(model)
  if path.exists():
    return load_config(path.parent if path.name == "config.json" else path)
  return preset(model) or load_config(model)
