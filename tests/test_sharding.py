"""The mesh flag, the table of PartitionSpecs, and one step that is the same on every mesh."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as Spec

from grpo_jax.models import DecoderConfig, init_params
from grpo_jax.sharding import (
  AXES,
  batch_parts,
  make_mesh,
  parameter_spec,
  parse_mesh,
  state_shardings,
)
from grpo_jax.types import TrainState

CONFIG = DecoderConfig(64, 32, 48, 2, 4, 2, 8)
ONE = "data:1"
# The part of a [32, 48] gate kernel (fsdp, tensor) and of 8 prompts (data x fsdp) on each device.
MESHES = {
  "data:8": (1, 1 / 8),
  "fsdp:8": (1 / 8, 1 / 8),
  "fsdp:4,tensor:2": (1 / 8, 1 / 4),
  "data:2,fsdp:2,tensor:2": (1 / 4, 1 / 4),
}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
  """The numbers of one step on every mesh, from one process with 8 CPU devices."""
  folder = tmp_path_factory.mktemp("meshes")
  script = Path(__file__).with_name("mesh_step.py")
  command = [
    sys.executable,
    str(script),
    str(folder / "out.npz"),
    str(folder / "run"),
    ONE,
    *MESHES,
  ]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  with np.load(folder / "out.npz") as found:
    return dict(found)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_is_the_same_on_every_mesh(steps, mesh):
  found = lambda name: steps[f"{mesh}/{name}"]
  wanted = lambda name: steps[f"{ONE}/{name}"]
  np.testing.assert_array_equal(found("tokens"), wanted("tokens"))
  assert len(np.unique(wanted("tokens"))) > 20
  np.testing.assert_allclose(found("logp"), wanted("logp"), atol=1e-5)
  scale = np.abs(wanted("gradient")).max()
  assert scale > 0.01
  np.testing.assert_allclose(found("gradient"), wanted("gradient"), atol=1e-5 * max(scale, 1))
  np.testing.assert_allclose(found("params"), wanted("params"), atol=1e-5)
  np.testing.assert_allclose(found("metrics"), wanted("metrics"), atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_arrays_are_split_as_the_mesh_says(steps, mesh):
  parameters, prompts = MESHES[mesh]
  # Before the step, after it, and the optimizer's moments.
  np.testing.assert_allclose(steps[f"{mesh}/shares"], [parameters] * 3)
  assert steps[f"{mesh}/prompt_share"] == prompts


@pytest.mark.parametrize("mesh", MESHES)
def test_a_checkpoint_is_read_on_another_mesh(steps, mesh):
  np.testing.assert_array_equal(steps[f"{mesh}/restored"], steps[f"{ONE}/params"])
  assert steps[f"{mesh}/restored_share"] == MESHES[mesh][0]


def abstract(**sizes):
  return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)


def test_every_matrix_has_a_place_of_its_own():
  config = dataclasses.replace(CONFIG, output_bias=True, qk_norm=True)
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  mesh = abstract(fsdp=2, tensor=2)
  for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
    keys = [key.key for key in path]
    spec = parameter_spec(config, mesh, keys, leaf.shape)
    if keys[0] == "layers":  # a layer is never cut from the others
      assert spec[0] is None, keys
      spec = Spec(*spec[1:])
    if keys[-1] in ("kernel", "embedding"):  # no matrix may fall through to the copied rest
      assert set(spec) == {"fsdp", "tensor"}, keys
    elif keys[-1] == "bias" and keys[-2] in "qkv":
      assert spec == Spec("tensor"), keys
    else:
      assert spec == Spec(), keys
  spec = lambda name: parameter_spec(config, mesh, ["layers", name, "kernel"], (2, 32, 32))
  assert spec("o") == Spec(None, "tensor", "fsdp") and spec("q") == Spec(None, "fsdp", "tensor")


def test_key_value_heads_that_do_not_divide_are_copied():
  spec = lambda name, shape: parameter_spec(
    CONFIG, abstract(tensor=4), ["layers", name, "kernel"], shape
  )
  assert spec("k", (2, 32, 16)) == spec("v", (2, 32, 16)) == Spec(None, "fsdp", None)
  assert spec("q", (2, 32, 32)) == Spec(None, "fsdp", "tensor")
  bias = parameter_spec(CONFIG, abstract(tensor=4), ["layers", "k", "bias"], (2, 16))
  assert bias == Spec(None, None)


@pytest.mark.parametrize(
  ("sizes", "path", "shape", "message"),
  [
    ({"tensor": 8}, "layers/q/kernel", (2, 32, 32), "tensor:8 does not divide the 4 query heads"),
    ({"fsdp": 3}, "layers/up/kernel", (2, 32, 48), r"fsdp:3 does not divide 32, a side of layers"),
    ({"tensor": 3}, "embed/embedding", (64, 32), "tensor:3 does not divide 64, a side of embed"),
  ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(sizes, path, shape, message):
  with pytest.raises(ValueError, match=message):
    parameter_spec(CONFIG, abstract(**sizes), path.split("/"), shape)


def test_moments_follow_their_parameter_and_counters_are_copied():
  params = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda count: 0.1))
  state = TrainState(params, jax.eval_shape(tx.init, params), jnp.int32(0), jax.random.key(0))
  placed = state_shardings(CONFIG, make_mesh("data:1"), state)
  adam = placed.opt_state[1][0]
  for tree in (placed.params, adam.mu, adam.nu):
    assert tree["layers"]["down"]["kernel"].spec == Spec(None, "tensor", "fsdp")
    assert tree["embed"]["embedding"].spec == Spec("tensor", "fsdp")
    assert tree["final_norm"]["scale"].spec == Spec()
  assert adam.count.spec == placed.step.spec == placed.key.spec == Spec()


def test_the_mesh_flag_is_read():
  assert parse_mesh("") == {"data": 1, "fsdp": 1, "tensor": 1}
  assert parse_mesh("tensor:2, fsdp:-1") == {"data": 1, "fsdp": -1, "tensor": 2}
  mesh = make_mesh("fsdp:-1")
  assert mesh.shape["fsdp"] == len(jax.devices()) and mesh.axis_names == AXES
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert batch_parts(mesh) == len(jax.devices())


@pytest.mark.parametrize("text", ["model:2", "data", "data:0", "data:x", "data=2", "data:1.5"])
def test_a_mesh_that_cannot_be_read_is_refused_with_the_axes(text):
  with pytest.raises(ValueError, match="AXIS one of data, fsdp, tensor"):
    parse_mesh(text)


def test_meshes_larger_than_the_machine_are_refused():
  device = jax.devices()[:1]
  with pytest.raises(ValueError, match="needs 4 devices and there are 1"):
    make_mesh("data:2,tensor:2", device)
  with pytest.raises(ValueError, match="1 devices do not divide by 2"):
    make_mesh("data:2,fsdp:-1", device)
  with pytest.raises(ValueError, match="only one axis may be -1"):
    make_mesh("data:-1,fsdp:-1", device)
