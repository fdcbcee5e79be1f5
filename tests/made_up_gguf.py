"""GGUF files as llama.cpp's converter writes them, made of small Hugging Face folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize

from grpo_jax.models import load_config
from grpo_jax.models.tensor_file import TensorFile

ARCHITECTURES = {"qwen2": MODEL_ARCH.QWEN2, "llama": MODEL_ARCH.LLAMA}
Kind = Callable[[str], GGMLQuantizationType]


def write_gguf(
  path: Path,
  folder: Path,
  kind: Kind = lambda name: GGMLQuantizationType.F32,
  more: Mapping[str, np.ndarray] | None = None,
  without: str = "",
) -> None:
  """Writes a checkpoint's config, weights and tokenizer, if it has one.

  Args:
    path: the file.
    folder: a Hugging Face folder.
    kind: from a tensor's name in the GGUF file to how it is quantized.
    more: further tensors by their names there; they win.
    without: a tensor to leave out.
  """
  config, family = load_config(folder), json.loads((folder / "config.json").read_text())
  writer = GGUFWriter(path, family["model_type"])
  writer.add_block_count(config.num_layers)
  writer.add_context_length(config.max_position_embeddings)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  if config.bos_token_id is not None:
    writer.add_bos_token_id(config.bos_token_id)
  writer.add_eos_token_id(config.eos_token_ids[0])
  writer.add_pad_token_id(config.pad_token_id)
  if (folder / "tokenizer.json").is_file():
    for key, value in tokenizer_metadata(folder).items():
      add = writer.add_array if isinstance(value, list) else writer.add_string
      add(key, value)
  names = get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_layers)
  file, tensors = TensorFile(folder / "model.safetensors"), {}
  for name, shape in file.shapes.items():
    value = file.rows(name, 0, shape[0]).astype(np.float32)
    if config.model_type == "llama" and ".q_proj" in name:
      value = pairs_from_halves(value, config.num_heads)
    if config.model_type == "llama" and ".k_proj" in name:
      value = pairs_from_halves(value, config.num_kv_heads)
    tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = value
  for name, value in (tensors | dict(more or {})).items():
    if name != without:
      stored = kind(name) if value.ndim > 1 else GGMLQuantizationType.F32
      writer.add_tensor(name, quantize(value, stored), raw_dtype=stored)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def pairs_from_halves(rows: np.ndarray, heads: int) -> np.ndarray:
  """llama.cpp's order of the rows of q and k, as its converter makes it."""
  halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
  return halves.swapaxes(1, 2).reshape(rows.shape)


def tokenizer_metadata(folder: Path) -> dict[str, Any]:
  """What llama.cpp's converter writes of a byte-level BPE tokenizer with Qwen's pattern."""
  described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
  size = load_config(folder).vocab_size
  tokens, kinds = [f"[PAD{i}]" for i in range(size)], [5] * size
  for word, i in described["model"]["vocab"].items():
    tokens[i], kinds[i] = word, 1
  for added in described["added_tokens"]:
    tokens[added["id"]], kinds[added["id"]] = added["content"], 3 if added["special"] else 4
  options = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": kinds,
    "tokenizer.ggml.merges": [" ".join(pair) for pair in described["model"]["merges"]],
    "tokenizer.chat_template": options["chat_template"],
  }
