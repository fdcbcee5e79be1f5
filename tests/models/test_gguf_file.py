"""GGUF files as checkpoints: names and orders as llama.cpp's converter has them, to the bit."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from made_up_gguf import write_gguf

from grpo_jax.models import DecoderConfig, init_params, load_pretrained, save_pretrained
from grpo_jax.models.gguf_file import gguf_config, read_gguf, write_gguf_checkpoint
from grpo_jax.models.tensor_file import TensorFile

CONFIG = DecoderConfig(
  96, 64, 96, 2, 4, 2, 16, rms_norm_eps=1e-5, rope_theta=1e6, tie_embeddings=True,
  max_position_embeddings=512, eos_token_ids=(7, 9), bos_token_id=9, pad_token_id=9,
)  # fmt: skip
VARIANTS = {
  "qwen2": CONFIG,
  "qwen2_untied": dataclasses.replace(CONFIG, tie_embeddings=False),
  "llama": dataclasses.replace(CONFIG, model_type="llama", attention_bias=False),
}


def checkpoint(config, folder):
  """A folder of random weights, biases and norms too."""
  keys = iter(jax.random.split(jax.random.key(3), 99))
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  params = jax.tree.map(lambda s: jax.random.normal(next(keys), s.shape), shapes)
  save_pretrained(config, params, folder)
  return folder


def converted(path, folder, dtype="float32"):
  """The folder that is written of a GGUF file."""
  metadata, tensors = read_gguf(path)
  write_gguf_checkpoint(gguf_config(metadata, tensors, dtype), tensors, folder)
  return folder


def tensors_of(folder):
  file = TensorFile(folder / "model.safetensors")
  return {name: file.rows(name, 0, shape[0]) for name, shape in file.shapes.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_comes_back_to_the_bit(variant, tmp_path):
  folder = checkpoint(VARIANTS[variant], tmp_path / "model")
  write_gguf(tmp_path / "model.gguf", folder)
  again = converted(tmp_path / "model.gguf", tmp_path / "again")
  (config, params), (found_config, found) = load_pretrained(folder), load_pretrained(again)
  assert found_config == config
  jax.tree.map(np.testing.assert_array_equal, found, params)
  names = ("config.json", "generation_config.json")
  assert all((folder / name).read_text() == (again / name).read_text() for name in names)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quantized_weights_are_gguf_s_own_rounded_once(dtype, tmp_path):
  folder = checkpoint(CONFIG, tmp_path / "model")
  # As in Qwen's files, where a matrix of one name differs in its bits from layer to layer.
  kinds = {"blk.0.ffn_down": Kind.Q4_1, "blk.1.ffn_down": Kind.Q8_0, "blk.0.attn_q": Kind.Q5_0}
  kind = lambda name: kinds.get(name.removesuffix(".weight"), Kind.Q4_0)
  write_gguf(tmp_path / "model.gguf", folder, kind)
  found = tensors_of(converted(tmp_path / "model.gguf", tmp_path / "again", dtype))
  stored = {
    "model.layers.0.mlp.down_proj.weight": Kind.Q4_1,
    "model.layers.1.mlp.down_proj.weight": Kind.Q8_0,
    "model.layers.0.self_attn.q_proj.weight": Kind.Q5_0,
  }
  for name, value in tensors_of(folder).items():
    if value.ndim > 1:
      bits = stored.get(name, Kind.Q4_0)
      value = dequantize(quantize(value, bits), bits)
    np.testing.assert_array_equal(found[name], value.astype(found[name].dtype))
    assert found[name].dtype.name == dtype


def test_eight_bits_are_a_scale_and_whole_numbers(tmp_path):
  folder = checkpoint(CONFIG, tmp_path / "model")
  write_gguf(tmp_path / "model.gguf", folder, lambda name: Kind.Q8_0)
  name = "model.layers.1.self_attn.o_proj.weight"
  blocks = tensors_of(folder)[name].reshape(-1, 32)
  scales = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
  wanted = np.round(blocks / scales) * scales.astype(np.float16).astype(np.float32)
  found = tensors_of(converted(tmp_path / "model.gguf", tmp_path / "again"))[name]
  np.testing.assert_allclose(found.reshape(-1, 32), wanted, rtol=1e-6)


def test_a_head_in_more_bits_takes_the_tied_embeddings_place(tmp_path):
  folder = checkpoint(CONFIG, tmp_path / "model")
  embedding = tensors_of(folder)["model.embed_tokens.weight"]
  kinds = {"token_embd.weight": Kind.Q4_0, "output.weight": Kind.Q8_0}
  kind = lambda name: kinds.get(name, Kind.F32)
  write_gguf(tmp_path / "model.gguf", folder, kind, {"output.weight": embedding})
  again = converted(tmp_path / "model.gguf", tmp_path / "again")
  assert load_pretrained(again)[0] == CONFIG
  found = tensors_of(again)["model.embed_tokens.weight"]
  eight, four = (dequantize(quantize(embedding, bits), bits) for bits in (Kind.Q8_0, Kind.Q4_0))
  assert (found == eight).all() and (found != four).any()


def test_what_is_no_such_decoder_is_refused(tmp_path):
  folder, path = checkpoint(CONFIG, tmp_path / "model"), tmp_path / "model.gguf"
  write_gguf(path, folder, without="blk.1.ffn_up.weight")
  with pytest.raises(ValueError, match=r"tensors: blk\.1\.ffn_up\.weight"):
    converted(path, tmp_path / "again")
  write_gguf(path, folder, more={"rope_freqs.weight": np.ones(8, np.float32)})
  with pytest.raises(ValueError, match=r"tensors: rope_freqs\.weight"):
    converted(path, tmp_path / "again")
  assert not (tmp_path / "again").exists()
  metadata, tensors = read_gguf(path)
  with pytest.raises(ValueError, match="a GGUF file of 'gemma'; expected one of llama, qwen2"):
    gguf_config(metadata | {"general.architecture": "gemma"}, tensors, "float32")
  with pytest.raises(ValueError, match="scales its positions"):
    gguf_config(metadata | {"qwen2.rope.scaling.type": "yarn"}, tensors, "float32")
  path.write_bytes(b"no such file at all")
  with pytest.raises(ValueError, match="GGUF"):
    read_gguf(path)
