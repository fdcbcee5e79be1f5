"""A model in llama.cpp's GGUF format as a Hugging Face checkpoint: config and dequantized weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package `gguf` (extra:
fetch) reads it and turns blocks of few bits into float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from grpo_jax.models.config import DecoderConfig, Dtype
from grpo_jax.models.parameters import Parameter, Tensor, checkpoint_tensors, parameters
from grpo_jax.models.tensor_file import write_tensors
from grpo_jax.models.weights import write_configs

FAMILIES = ("llama", "qwen2")  # llama.cpp's names of architectures, which are Hugging Face's too
# By the part of our path that names a layer's or the decoder's own module.
_NAMES = {
  "embed": "token_embd",
  "final_norm": "output_norm",
  "head": "output",
  "attn_norm": "attn_norm",
  "q": "attn_q",
  "k": "attn_k",
  "v": "attn_v",
  "o": "attn_output",
  "mlp_norm": "ffn_norm",
  "gate": "ffn_gate",
  "up": "ffn_up",
  "down": "ffn_down",
}
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
# Relative distance of two quantizations of one matrix: 4% (5 and 8 bits) and 7% (4 and 6 bits) in
# Qwen's files. Matrices that are trained apart are as far from each other as they are long.
_SAME_MATRIX, _ROWS_COMPARED = 0.25, 1024


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Opens a GGUF file.

  Returns:
    Its metadata by key, and its tensors by name, mapped from the file.

  Raises:
    ModuleNotFoundError: the package `gguf` is not installed.
    ValueError: it is no GGUF file.
  """
  try:
    from gguf import GGUFReader
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "reading GGUF files needs gguf: pip install 'grpo_jax[fetch]'"
    ) from error
  reader = GGUFReader(path)
  metadata = {key: field.contents() for key, field in reader.fields.items()}
  return metadata, {tensor.name: tensor for tensor in reader.tensors}


def gguf_config(
  metadata: Mapping[str, Any], tensors: Mapping[str, Any], dtype: Dtype
) -> DecoderConfig:
  """The decoder that a GGUF file describes.

  A head that is the embedding, stored once more in other bits, is tied to it again. The padding
  token ends a text, too: Qwen's is <|endoftext|>, which its own generation_config.json lists.

  Args:
    metadata: from `read_gguf`.
    tensors: from `read_gguf`.
    dtype: of the weights that are to be written.

  Raises:
    ValueError: an architecture, or a scaling of positions, that is not read.
  """
  family = metadata.get("general.architecture")
  if family not in FAMILIES:
    raise ValueError(f"a GGUF file of {family!r}; expected one of {', '.join(FAMILIES)}")
  if f"{family}.rope.scaling.type" in metadata:
    raise ValueError("the GGUF file scales its positions, which is not read")
  of = lambda name: metadata[f"{family}.{name}"]
  token = lambda name: metadata.get(f"tokenizer.ggml.{name}_token_id")
  width, heads = of("embedding_length"), of("attention.head_count")
  ends = (token("eos"), token("padding"))
  return DecoderConfig(
    vocab_size=int(tensors[_EMBEDDING].shape[1]),
    hidden_size=width,
    intermediate_size=of("feed_forward_length"),
    num_layers=of("block_count"),
    num_heads=heads,
    num_kv_heads=of("attention.head_count_kv"),
    head_dim=metadata.get(f"{family}.attention.key_length", width // heads),
    # A float32 in the file: 1e-05 comes back as 9.99999974e-06.
    rms_norm_eps=float(f"{of('attention.layer_norm_rms_epsilon'):.3g}"),
    rope_theta=of("rope.freq_base"),
    tie_embeddings=_is_tied(tensors),
    attention_bias="blk.0.attn_q.bias" in tensors,
    max_position_embeddings=of("context_length"),
    dtype=dtype,
    model_type=family,
    bos_token_id=token("bos"),
    eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
    pad_token_id=token("padding"),
  )


def write_gguf_checkpoint(config: DecoderConfig, tensors: Mapping[str, Any], folder: Path) -> None:
  """Writes `config.json`, `generation_config.json` and `model.safetensors`, tensor by tensor.

  Args:
    config: from `gguf_config`; its dtype is that of the file.
    tensors: from `read_gguf`.
    folder: made if missing.

  Raises:
    ValueError: a tensor is missing, is not one of such a decoder, or has another shape.
  """
  dtype = np.dtype(jnp.dtype(config.dtype))
  wanted = {tensor.name: tensor for tensor in checkpoint_tensors(parameters(config))}
  sources = {name: _source(tensor, config, tensors) for name, tensor in wanted.items()}
  used = {*sources.values(), _EMBEDDING}
  if odd := sorted(used ^ tensors.keys()):
    raise ValueError(f"the GGUF file does not hold such a decoder's tensors: {', '.join(odd)}")

  def values() -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in wanted.items():
      value = _dequantized(tensors[sources[name]])
      if heads := _heads_in_pairs(tensor.parameter, config):
        value = halves_from_pairs(value, heads)
      yield name, value.astype(dtype)

  folder.mkdir(parents=True, exist_ok=True)
  specs = {name: (tensor.parameter.stored_shape, dtype) for name, tensor in wanted.items()}
  write_tensors(folder / "model.safetensors", specs, values())
  write_configs(config, config.dtype, folder)


def halves_from_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
  """Undoes llama.cpp's order of the rows of Llama's q and k.

  Inside a head it stores the two rows that rotate together side by side (0, d/2, 1, d/2 + 1, ...);
  Hugging Face rotates halves, so the rows go back to 0, 1, ..., d/2, d/2 + 1, ...

  Args:
    rows: [heads * d, ...].
    heads: how many of them lie there.
  """
  pairs = rows.shape[0] // heads // 2
  return rows.reshape(heads, pairs, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _heads_in_pairs(parameter: Parameter, config: DecoderConfig) -> int:
  """Whose heads' rows llama.cpp has reordered; 0 where it has not, as in all of Qwen's."""
  if config.model_type != "llama":
    return 0
  return {"q": config.num_heads, "k": config.num_kv_heads}.get(parameter.path[-2], 0)


def _source(tensor: Tensor, config: DecoderConfig, tensors: Mapping[str, Any]) -> str:
  """The name in a GGUF file of a tensor of the checkpoint."""
  module, kind = tensor.parameter.path[-2:]
  name = f"{_NAMES[module]}.{'bias' if kind == 'bias' else 'weight'}"
  if name == _EMBEDDING and config.tie_embeddings and _HEAD in tensors:
    return _HEAD  # stored in more bits than the embedding
  return name if tensor.layer is None else f"blk.{tensor.layer}.{name}"


def _is_tied(tensors: Mapping[str, Any]) -> bool:
  """Whether the output head is the embedding: it is absent, or equal up to quantization."""
  if _HEAD not in tensors:
    return True
  head, embedding = (_dequantized(tensors[n], _ROWS_COMPARED) for n in (_HEAD, _EMBEDDING))
  distance = np.linalg.norm(head - embedding) / np.linalg.norm(head)
  return bool(distance <= _SAME_MATRIX)


def _dequantized(tensor: Any, rows: int | None = None) -> np.ndarray:
  """The first rows of a tensor, or all, float32."""
  from gguf.quants import dequantize

  return dequantize(tensor.data[:rows], tensor.tensor_type)
