"""The one table of parameters: what follows from it, and draws that are those of version 0.1."""

from __future__ import annotations

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from as_users_do import called_as_users_do

from grpo_jax.models import (
  DecoderConfig,
  LoraConfig,
  in_compute_dtype,
  init_adapters,
  init_params,
  layers_apart,
  unstacked,
)
from grpo_jax.models.induction_init import init_induction_params
from grpo_jax.models.parameters import (
  checkpoint_tensors,
  layer_count,
  layer_of,
  linear_layers,
  parameter_count,
  parameters,
)

CONFIG = DecoderConfig(61, 16, 28, 12, 4, 2, 6, qk_norm=True, output_bias=True)
INDUCTION = DecoderConfig(200, 128, 64, 2, 4, 2, 32, rope_theta=1e6, tie_embeddings=True)
LORA = LoraConfig(3, 6.0, ("q", "v", "down"))


def digest_by_layer(tree):
  """The digest of all parameters, each layer's for itself, as 0.1 kept them."""
  lines = []
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    root, *rest = (key.key for key in path)
    stacked = root == "layers"
    for n, one in enumerate(np.asarray(leaf) if stacked else [np.asarray(leaf)]):
      name = "/".join([f"layers_{n}" if stacked else root, *rest])
      lines.append(f"{name} {hashlib.sha256(one.tobytes()).hexdigest()}\n")
  return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()[:16]


def draws():
  """The digests of what is drawn for a model, for adapters, and for an induction start."""
  key = jax.random.key(3)
  return {
    "params": digest_by_layer(init_params(CONFIG, key)),
    "adapters": digest_by_layer(init_adapters(CONFIG, LORA, key)),
    "induction": digest_by_layer(init_induction_params(INDUCTION, key)),
  }


def test_draws_are_those_of_version_0_1():
  assert called_as_users_do(draws) == {  # made with 0.1 (fa4cd7e)
    "params": "9d363634ecdd4353",
    "adapters": "93ac402aff295961",
    "induction": "f5ff6f5a95a0d104",
  }


def test_counts_are_those_of_the_tree():
  shapes = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert parameter_count(CONFIG) == size(shapes)
  assert CONFIG.num_layers * layer_count(CONFIG) == size(shapes["layers"])
  kernels = [x["kernel"].size for x in shapes["layers"].values() if "kernel" in x]
  assert CONFIG.num_layers * layer_count(CONFIG, matrices_only=True) == sum(kernels)
  assert linear_layers(CONFIG) == ("q", "k", "v", "o", "gate", "up", "down")


def test_a_checkpoint_holds_one_layer_after_the_other():
  names = [tensor.name for tensor in checkpoint_tensors(parameters(CONFIG))]
  layer_of = [int(name.split(".")[2]) for name in names if ".layers." in name]
  assert layer_of == sorted(layer_of) and set(layer_of) == set(range(12))
  assert names[0] == "model.embed_tokens.weight"
  assert names[-2:] == ["model.norm.weight", "lm_head.weight"]
  assert len(names) == len(set(names))


def test_norms_and_biases_are_not_rounded_to_the_compute_dtype():
  config = DecoderConfig(61, 16, 28, 3, 4, 2, 6, qk_norm=True, output_bias=True, dtype="bfloat16")
  params = in_compute_dtype(config, init_params(config, jax.random.key(0)))
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    wide = path[-1].key in ("scale", "bias")
    assert leaf.dtype == (jnp.float32 if wide else jnp.bfloat16), path


def test_unstacked_parameters_are_each_layer_s_own():
  params = init_params(CONFIG, jax.random.key(0))
  apart = unstacked(CONFIG, params)
  assert apart["embed"]["embedding"] is params["embed"]["embedding"]
  assert len(apart["layers"]) == 12
  for n, layer in enumerate(apart["layers"]):
    wanted = jax.tree.map(lambda x, n=n: x[n], params["layers"])
    jax.tree.map(np.testing.assert_array_equal, layer, wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_apart_are_those_of_unstacked_from_one_program(dtype):
  config = dataclasses.replace(CONFIG, dtype=dtype)
  params = init_params(config, jax.random.key(0))
  before = layer_of._cache_size()
  apart = layers_apart(config, params)
  assert layer_of._cache_size() == before + 1
  wanted = unstacked(config, params)["layers"]
  assert jax.tree.structure(apart) == jax.tree.structure(wanted)
  for found, leaf in zip(jax.tree.leaves(apart), jax.tree.leaves(wanted), strict=True):
    assert found.dtype == leaf.dtype
    np.testing.assert_array_equal(found, leaf)
