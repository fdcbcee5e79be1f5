"""Checkpoints in and out: exact bits, little memory, and one error that lists what is wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from grpo_jax.models import DecoderConfig, init_params, load_pretrained, save_pretrained
from grpo_jax.models.parameters import parameters
from grpo_jax.models.tensor_file import TensorFile

CONFIG = DecoderConfig(61, 16, 28, 2, 4, 2, 6, model_type="qwen2", eos_token_ids=(7, 9))
VARIANTS = {
  "qwen2": CONFIG,
  "qwen2_tied": dataclasses.replace(CONFIG, tie_embeddings=True),
  "qwen3": dataclasses.replace(CONFIG, model_type="qwen3", qk_norm=True, attention_bias=False),
  "llama_biases": dataclasses.replace(CONFIG, model_type="llama", output_bias=True),
  "mistral": dataclasses.replace(CONFIG, model_type="mistral", attention_bias=False),
}


def _random(config, dtype="float32"):
  keys = iter(jax.random.split(jax.random.key(0), 99))
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  return jax.tree.map(lambda s: jax.random.normal(next(keys), s.shape).astype(dtype), shapes)


def _assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(_bits(x), _bits(y)), a, b)


def _bits(x):
  return np.asarray(x).view(np.uint8)


@pytest.fixture
def folder(tmp_path):
  save_pretrained(CONFIG, _random(CONFIG), tmp_path / "model")
  return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_import_export_import_is_bit_identical(variant, dtype, tmp_path):
  config = dataclasses.replace(VARIANTS[variant], dtype=dtype)
  params = _random(config, dtype)
  save_pretrained(config, params, tmp_path / "a")
  config_a, params_a = load_pretrained(tmp_path / "a", dtype)
  save_pretrained(config_a, params_a, tmp_path / "b")
  config_b, params_b = load_pretrained(tmp_path / "b", dtype)
  assert config_a == config_b == config
  _assert_same_bits(params_a, params)
  _assert_same_bits(params_b, params)
  for name in ("config.json", "generation_config.json", "model.safetensors"):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_name_table_covers_exactly_the_decoders_parameters():
  for config in VARIANTS.values():
    table = {parameter.path: parameter.stacked_shape for parameter in parameters(config)}
    leaves = jax.tree_util.tree_flatten_with_path(_random(config))[0]
    assert table == {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def test_kernels_are_turned_and_named_as_transformers_names_them(folder):
  _, params = load_pretrained(folder)
  stored = load_file(folder / "model.safetensors")  # the safetensors package reads our files
  layer = jax.tree.map(lambda x: x[1], params["layers"])
  np.testing.assert_array_equal(
    layer["gate"]["kernel"], stored["model.layers.1.mlp.gate_proj.weight"].T
  )
  np.testing.assert_array_equal(layer["q"]["bias"], stored["model.layers.1.self_attn.q_proj.bias"])
  np.testing.assert_array_equal(params["embed"]["embedding"], stored["model.embed_tokens.weight"])
  np.testing.assert_array_equal(params["head"]["kernel"], stored["lm_head.weight"].T)


def test_a_sharded_export_has_an_index_and_loads_the_same(folder, tmp_path):
  config, params = load_pretrained(folder)
  save_pretrained(config, params, tmp_path / "shards", max_shard_bytes=6000)
  shards = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
  assert len(shards) > 2
  assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
  index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text())
  assert set(index["weight_map"].values()) == set(shards)
  assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
  _assert_same_bits(load_pretrained(tmp_path / "shards")[1], params)


def test_a_new_export_replaces_all_older_weights(folder, tmp_path):
  config, params = load_pretrained(folder)
  changed = jax.tree.map(lambda x: x + 1, params)
  save_pretrained(config, changed, folder, max_shard_bytes=6000)
  assert not (folder / "model.safetensors").exists()
  _assert_same_bits(load_pretrained(folder)[1], changed)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_files_of_another_dtype_are_cast(folder, stored):
  tensors = load_file(folder / "model.safetensors")
  tensors = {name: value.astype(stored) for name, value in tensors.items()}
  save_file(tensors, folder / "model.safetensors")
  for dtype in ("float32", "bfloat16"):
    config, params = load_pretrained(folder, dtype)
    assert config.dtype == dtype
    wanted = tensors["model.layers.0.mlp.down_proj.weight"].T.astype(jax.numpy.dtype(dtype))
    np.testing.assert_array_equal(
      _bits(params["layers"]["down"]["kernel"][0]), _bits(wanted.copy())
    )


def test_without_a_dtype_the_checkpoints_own_is_kept(folder, tmp_path):
  config, params = load_pretrained(folder)
  save_pretrained(config, params, tmp_path, dtype="bfloat16")
  config, params = load_pretrained(tmp_path, dtype=None)
  assert config.dtype == "bfloat16"
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_an_unknown_dtype_is_refused(folder):
  with pytest.raises(ValueError, match="dtype is 'float8'; expected one of float32"):
    load_pretrained(folder, "float8")


def test_an_export_can_be_stored_narrower(folder, tmp_path):
  config, params = load_pretrained(folder)
  save_pretrained(config, params, tmp_path / "half", dtype="bfloat16")
  _assert_same_bits(
    load_pretrained(tmp_path / "half", "bfloat16")[1],
    jax.tree.map(lambda x: x.astype("bfloat16"), params),
  )
  assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_every_fault_of_a_checkpoint_is_listed_at_once(folder):
  tensors = load_file(folder / "model.safetensors")
  del tensors["model.norm.weight"], tensors["model.layers.0.self_attn.k_proj.bias"]
  tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
  tensors["lm_head.weight"] = np.zeros((61, 15), np.float32)
  tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((28, 16), np.int8)
  save_file(tensors, folder / "model.safetensors")
  with pytest.raises(ValueError) as error:
    load_pretrained(folder)
  assert str(error.value).splitlines()[1:] == [
    "  missing model.layers.0.self_attn.k_proj.bias",
    "  missing model.norm.weight",
    "  unexpected model.layers.2.mlp.up_proj.weight",
    "  model.layers.0.mlp.up_proj.weight is stored as I8, expected one of F64, F32, F16, BF16",
    "  lm_head.weight has shape (61, 15), expected (61, 16)",
  ]


def test_a_tied_head_may_be_stored_too_but_must_be_the_embedding(tmp_path):
  config = VARIANTS["qwen2_tied"]
  save_pretrained(config, _random(config), tmp_path)
  tensors = load_file(tmp_path / "model.safetensors")
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
  save_file(tensors, tmp_path / "model.safetensors")
  _, params = load_pretrained(tmp_path)
  assert "head" not in params
  tensors["lm_head.weight"][60, 15] += 1
  save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(
    ValueError, match=r"ties the head to the embedding, but lm_head.weight differs"
  ):
    load_pretrained(tmp_path)


def test_old_rotary_buffers_are_passed_over(folder):
  tensors = load_file(folder / "model.safetensors")
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)
  save_file(tensors, folder / "model.safetensors")
  load_pretrained(folder)


def test_pickled_weights_are_refused(folder):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
  with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin but no safetensors.*never read"):
    load_pretrained(folder)
  (folder / "pytorch_model.bin").unlink()  # of a hub id it would not even have been fetched
  with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors.*\*\.bin, are neither"):
    load_pretrained(folder)


def test_a_missing_shard_is_named(folder):
  config, params = load_pretrained(folder)
  save_pretrained(config, params, folder, max_shard_bytes=6000)
  lost = sorted(folder.glob("model-00002-*"))[0]
  lost.unlink()
  with pytest.raises(FileNotFoundError, match=lost.name):
    load_pretrained(folder)


@pytest.mark.parametrize(
  "index", [b"{", b"[" * 100_000, b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": []}}']
)
def test_a_malformed_index_is_refused_with_the_name_of_the_file(folder, index):
  (folder / "model.safetensors").unlink()
  (folder / "model.safetensors.index.json").write_bytes(index)
  with pytest.raises(ValueError, match=r"index\.json (is not JSON|has no \"weight_map\")"):
    load_pretrained(folder)


@pytest.mark.parametrize("end", [-1, 100, 3])
def test_a_file_that_is_cut_short_is_refused(folder, end):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:end])
  with pytest.raises(ValueError, match="fetch it again"):
    TensorFile(path)


def test_a_header_that_contradicts_itself_is_refused(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes().replace(b'"shape":[61,16]', b'"shape":[61,15]', 1))
  with pytest.raises(ValueError, match=r"damaged: model\.embed_tokens\.weight"):
    TensorFile(path)


def test_an_unsupported_config_names_its_file(folder):
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
  with pytest.raises(ValueError, match=r"config.json: hidden_act 'relu'"):
    load_pretrained(folder)


def test_parameters_that_do_not_fit_the_config_are_listed(folder, tmp_path):
  config, params = load_pretrained(folder)
  del params["layers"]["up"]
  params["extra"] = {"kernel": np.zeros(1)}
  with pytest.raises(ValueError, match="extra/kernel, layers/up/kernel"):
    save_pretrained(config, params, tmp_path)
  params = _random(config)
  params["final_norm"]["scale"] = np.zeros(3)
  with pytest.raises(ValueError, match=r"final_norm/scale \(3,\), expected \(16,\)"):
    save_pretrained(config, params, tmp_path)


def test_the_generation_config_is_kept_and_its_stop_tokens_count(folder, tmp_path):
  source = {"eos_token_id": [5, 6], "pad_token_id": 4, "temperature": 0.7, "top_k": 20}
  (folder / "generation_config.json").write_text(json.dumps(source))
  config, params = load_pretrained(folder)
  assert config.eos_token_ids == (5, 6)
  save_pretrained(config, params, tmp_path)
  assert json.loads((tmp_path / "generation_config.json").read_text()) == source
  assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == [5, 6]


SHARDED = """
import os, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=4"
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from grpo_jax.models import load_pretrained, save_pretrained
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
asked = []
def sharding(path, shape):
  asked.append(path)
  # The layers too: each device has one of the two.
  split = [axis if size % 2 == 0 else None for axis, size in zip(("a", "b"), shape)]
  return NamedSharding(mesh, P(*split[::-1]) if path[1] == "down" else P(*split))
config, plain = load_pretrained(sys.argv[1])
_, placed = load_pretrained(sys.argv[1], sharding=sharding)
jax.tree.map(np.testing.assert_array_equal, plain, placed)
kernel = placed["layers"]["gate"]["kernel"]
assert kernel.shape == (2, 16, 28) and kernel.addressable_shards[0].data.shape == (1, 8, 28)
assert placed["layers"]["down"]["kernel"].sharding.spec == P("b", "a")
assert ("layers", "q", "bias") in asked
save_pretrained(config, placed, sys.argv[2])
"""


def test_tensors_are_read_straight_into_shards(folder, tmp_path):
  subprocess.run([sys.executable, "-c", SHARDED, folder, tmp_path / "out"], check=True)
  names = ("model.safetensors", "config.json")
  assert all((tmp_path / "out" / n).read_bytes() == (folder / n).read_bytes() for n in names)


MEMORY = """
import os, pathlib, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=" + sys.argv[3]
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from grpo_jax.models import load_pretrained
def status(name):
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
jax.device_put(np.zeros(9)).block_until_ready()
mesh = jax.make_mesh((jax.device_count(),), ("a",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("a"))
sharding = None if mesh.size == 1 else lambda path, shape: split
before = status("VmRSS")
config, params = load_pretrained(sys.argv[1], sys.argv[2], sharding)
resident = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
# Not ru_maxrss: a child inherits its parent's.
print(before, status("VmHWM"), resident)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("stored", "devices"), [("float32", 1), ("bfloat16", 1), ("bfloat16", 4)])
def test_loading_needs_no_more_than_a_quarter_above_the_largest_tensor(stored, devices, tmp_path):
  config = DecoderConfig(40_000, 512, 2048, 12, 8, 4, 64, tie_embeddings=True)
  params = jax.tree.map(
    lambda s: np.ones(s.shape, stored),
    jax.eval_shape(lambda: init_params(config, jax.random.key(0))),
  )
  save_pretrained(config, params, tmp_path, max_shard_bytes=100_000_000)
  del params
  done = subprocess.run(
    [sys.executable, "-c", MEMORY, tmp_path, "float32", str(devices)],
    check=True,
    capture_output=True,
    text=True,
  )
  before, peak, resident = map(int, done.stdout.split())
  largest = 40_000 * 512 * 4
  assert resident > 3 * largest
  assert peak - before <= resident + 1.25 * largest
