"""The optimizers of a run: steps worked out by hand, and how large their states are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as Spec

from grpo_jax.config import OptimizerConfig
from grpo_jax.models import DecoderConfig, init_params
from grpo_jax.optimizers import make_optimizer, make_schedule, steps_taken
from grpo_jax.sharding import AXES, state_shardings


def first_update(name, params, grads, clip_norm=1e9):
  config = OptimizerConfig(optimizer=name, weight_decay=0.5, clip_norm=clip_norm)
  tx = make_optimizer(config, lambda count: 0.1 * (count + 1))
  return tx.update(grads, tx.init(params), params)[0]


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_first_step_is_the_sign_of_the_gradient_and_the_decay(name):
  # Both divide by the root of the gradient's own square at first: +-1, times the learning rate 0.1.
  params, grads = jnp.array([2.0, -4.0]), jnp.array([3.0, -0.01])
  wanted = -0.1 * (jnp.array([1.0, -1.0]) + 0.5 * params)
  np.testing.assert_allclose(first_update(name, params, grads), wanted, rtol=1e-4)


def test_adafactor_divides_by_row_and_column_means():
  rng = np.random.default_rng(0)
  grads, params = rng.normal(size=(128, 200)).astype(np.float32), np.zeros((128, 200), np.float32)
  square = grads**2
  estimate = np.outer(square.mean(1), square.mean(0)) / square.mean()
  wanted = grads / np.sqrt(estimate)
  wanted /= max(1, np.sqrt(np.mean(wanted**2)))
  np.testing.assert_allclose(
    first_update("adafactor", params, jnp.asarray(grads)), -0.1 * wanted, rtol=1e-4
  )


def test_adafactor_s_state_is_small_and_has_a_place_on_every_mesh():
  config = DecoderConfig(256, 128, 256, 1, 4, 2, 32)
  params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  state = {}
  for name in ("adamw", "adafactor"):
    tx = make_optimizer(OptimizerConfig(optimizer=name), lambda count: 0.1)
    state[name] = jax.eval_shape(tx.init, params)
  assert size(state["adamw"]) > 2 * size(params)
  # The [128, 64] kernels of k and v are below what is factored.
  assert size(state["adafactor"]) < 0.12 * size(params)
  mesh = AbstractMesh((1, 2, 2), AXES)
  placed = state_shardings(config, mesh, state["adafactor"])
  moments = placed[1]
  assert moments.v_row["layers"]["gate"]["kernel"].spec == Spec()
  assert moments.v["layers"]["k"]["kernel"].spec == Spec(None, "fsdp", "tensor")
  assert moments.v["layers"]["q"]["bias"].spec == Spec(None, "tensor")
  jax.tree.map(lambda leaf, place: place.shard_shape(leaf.shape), state["adafactor"], placed)


def test_the_learning_rate_rises_and_falls_to_the_end():
  rates = lambda *arguments: [float(make_schedule(*arguments)(count)) for count in range(6)]
  assert rates(0.1, 2) == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1, 0.1])
  assert rates(0.1, 2, "linear", 6) == pytest.approx([0.05, 0.1, 0.08, 0.06, 0.04, 0.02])
  assert rates(0.12, 0, "linear", 5) == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02, 0.0])


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_state_says_how_many_steps_the_schedule_has_seen(name):
  tx = make_optimizer(OptimizerConfig(optimizer=name), make_schedule(0.1, 2))
  params = jnp.ones(3)
  state = tx.init(params)
  for taken in range(3):
    assert steps_taken(state) == taken
    _, state = tx.update(params, state, params)


def test_adafactor_treats_each_layer_for_itself():
  """Stacked leaves move as the same leaves would one layer at a time, over several steps."""
  layers, rng = 3, np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  # One layer's gradient is so large that it alone is clipped; matrices factored and not, a bias.
  sizes = jnp.array([1.0, 1e-3, 50.0])
  one = {"gate": {"kernel": (128, 200)}, "k": {"kernel": (128, 64), "bias": (64,)}}
  stacked = lambda: jax.tree.map(
    lambda shape: draw(layers, *shape) * sizes.reshape(-1, *[1] * len(shape)),
    one, is_leaf=lambda x: isinstance(x, tuple),
  )  # fmt: skip
  params = {"embed": {"embedding": draw(130, 128)}, "layers": stacked()}
  apart = lambda tree: (
    {"embed": tree["embed"]}
    | {f"layers_{n}": jax.tree.map(lambda x, n=n: x[n], tree["layers"]) for n in range(layers)}
  )
  tx = make_optimizer(
    OptimizerConfig(optimizer="adafactor", weight_decay=0.1, clip_norm=1e9), lambda count: 0.1
  )
  plain = params, apart(params)
  states = [tx.init(tree) for tree in plain]
  update = jax.jit(tx.update)
  for step in range(3):
    larger = 1.0 + 10.0 * step
    grads = jax.tree.map(lambda x, larger=larger: draw(*x.shape) * larger, params)
    moved = []
    for i, tree in enumerate((grads, apart(grads))):
      updates, states[i] = update(tree, states[i], plain[i])
      moved.append(updates)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
      apart(moved[0]), moved[1],
    )  # fmt: skip
