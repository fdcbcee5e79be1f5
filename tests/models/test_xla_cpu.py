"""What is done for XLA on CPU changes no number, and is not done for other platforms."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from grpo_jax.config import GRPOConfig, SamplingConfig
from grpo_jax.grpo import make_batch, policy_gradient
from grpo_jax.models import (
  DecoderConfig,
  LoraConfig,
  completion_logprobs,
  init_adapters,
  init_params,
  with_adapters,
)
from grpo_jax.models.xla_cpu import flat, over_first, product, project, stored
from grpo_jax.sampling import sample_groups
from grpo_jax.types import Prompts

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
SMALL = DecoderConfig(67, 32, 48, 2, 4, 2, 8, tie_embeddings=True)


def products(function, platform, *args):
  """The matrix products of a program that is lowered for a platform."""
  text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
  return [Product(line) for line in text.splitlines() if "dot_general" in line]


class Product:
  """One `stablehlo.dot_general`: dtypes of operands and result, and what is contracted."""

  def __init__(self, line):
    types = re.findall(r"tensor<([0-9x]+)x(\w+)>", line.rpartition(" : ")[2])
    self.ranks = [len(shape.split("x")) for shape, _ in types]
    self.left, self.right, self.result = (dtype for _, dtype in types)
    self.contracted = int(re.search(r"contracting_dims = \[(\d+)\] x", line)[1])

  @property
  def fast(self):
    """A float32 result, summed over the left side's last axis."""
    return self.result == "f32" and self.contracted == self.ranks[0] - 1


def test_rotations_are_stored_through_a_product_on_cpu_alone():
  np.testing.assert_array_equal(jax.jit(stored)(X), X)
  through = lambda x: stored(jnp.cos(x))
  assert len(products(through, "cpu", X)) == 1
  assert products(through, "tpu", X) == products(through, "cuda", X) == []


@pytest.mark.parametrize("function", [project, product])
@pytest.mark.parametrize("columns", [3, 9])  # the gradient's transpose is of the narrower side
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_gradients_are_those_of_a_plain_product(function, columns, dtype, tolerance):
  rng = np.random.default_rng(columns)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  x, w = draw(5, 6), draw(6, columns)
  slope = lambda f: jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w).astype("float32"))), (0, 1))
  wanted = jax.jit(slope(jnp.matmul))(x.astype("float32"), w.astype("float32"))
  for found, right in zip(jax.jit(slope(function))(x, w), wanted, strict=True):
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype("float32"), right, atol=tolerance * abs(right).max())


def test_products_of_stacks_have_gradients_of_stacks():
  rng = np.random.default_rng(2)
  a, b, g = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in
             [(2, 5, 4), (2, 4, 7), (2, 5, 7)])  # fmt: skip
  found = jax.vjp(product, a, b)[1](g.astype("float32"))
  wanted = jnp.einsum("bmn,bkn->bmk", g, b), jnp.einsum("bmk,bmn->bkn", a, g)
  for one, right in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one.astype("float32"), right.astype("float32"), atol=0.1)


@pytest.mark.parametrize("lora", [None, LoraConfig(2)])
def test_every_bfloat16_product_of_a_step_is_a_fast_one_on_cpu(lora):
  config = dataclasses.replace(SMALL, dtype="bfloat16")
  params, base = jax.eval_shape(lambda: init_params(config, jax.random.key(0))), None
  if lora:
    base = params
    params = jax.eval_shape(lambda: init_adapters(config, lora, jax.random.key(0)))
  prompts = Prompts(np.ones((2, 6), np.int32), np.ones((2, 6), bool), np.arange(2, dtype=np.int32))
  settings = GRPOConfig(SamplingConfig(2, 5))
  sample = lambda params, base: sample_groups(
    config, with_adapters(params, base, lora), prompts, jax.random.key(1), settings.sampling
  )
  rollout = jax.eval_shape(sample, params, base)
  batch = jax.eval_shape(
    lambda rollout: make_batch(rollout, jnp.zeros((2, 2)), None, settings), rollout
  )
  gradient = lambda params, batch, base: policy_gradient(
    params, batch, base, config=config, settings=settings, lora=lora
  )
  found = products(sample, "cpu", params, base) + products(gradient, "cpu", params, batch, base)
  half = [one for one in found if "bf16" in (one.left, one.right)]
  assert len(half) > 40 and all(one.left == one.right for one in half)
  assert all(one.fast for one in half)
  # The plain form elsewhere: what is rounded anyway is not written in float32 first.
  elsewhere = products(gradient, "tpu", params, batch, base)
  assert any(one.result == "bf16" for one in elsewhere)


@pytest.mark.parametrize("remat", ["none", "dots", "layers"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [None, LoraConfig(2, alpha=2.0)])
def test_a_bfloat16_gradient_is_float32_s_but_for_rounding(lora, tied, remat):
  """It is run, too: XLA finds out when it runs a program that it has no such product."""
  config = dataclasses.replace(SMALL, tie_embeddings=tied)
  params, base = init_params(config, jax.random.key(0)), None
  params, rng = jax.tree.map(lambda x: 3 * x, params), np.random.default_rng(3)
  if lora:
    base, params = params, init_adapters(config, lora, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("float32"), params)
  prompts = Prompts(
    rng.integers(0, 67, (4, 6)), np.ones((4, 6), bool), np.arange(4, dtype=np.int32)
  )
  settings = GRPOConfig(SamplingConfig(2, 5), micro_batch_prompts=2, remat=remat)
  rollout = sample_groups(
    config, with_adapters(params, base, lora), prompts, jax.random.key(1), settings.sampling
  )
  batch = make_batch(rollout, rng.normal(size=(4, 2)), None, settings)

  def gradient(dtype):
    c = dataclasses.replace(config, dtype=dtype)
    program = jax.jit(lambda params, base: policy_gradient(
      params, batch, base, config=c, settings=settings, lora=lora
    ))  # fmt: skip
    return program(params, base)[0]

  exact, half = gradient("float32"), gradient("bfloat16")
  for path, right in jax.tree_util.tree_leaves_with_path(exact):
    found = functools.reduce(lambda tree, key: tree[key.key], path, half)
    assert found.dtype == jnp.float32
    assert np.linalg.norm(found - right) < 0.15 * np.linalg.norm(right) + 1e-6, path


def test_rematerialisation_keeps_what_it_is_told_to():
  """In 16 bits as integers; no product with a kernel is computed a second time."""
  config = dataclasses.replace(SMALL, dtype="bfloat16")
  params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  tokens, mask = np.ones((1, 6), np.int32), np.ones((1, 6), bool)

  def program(remat):
    loss = lambda params: completion_logprobs(
      config, params, tokens, mask, np.ones((1, 2, 5), np.int32), remat=remat
    ).logp.sum()
    return jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=("cpu",)).as_text()

  count = {remat: program(remat).count("dot_general") for remat in ("none", "dots", "layers")}
  assert count["none"] < count["dots"] < count["layers"]
  assert (
    count["layers"] - count["dots"] == 6
  )  # one body for all layers; the last kernel is never needed
  assert "tensor<2x14x48xui16>" in program("dots")  # of both layers


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("mapped", [lax.map, lambda f, x: jax.vmap(f)(x)])
def test_an_axis_of_one_is_left_out(count, mapped):
  rows = jnp.arange(count * 6.0).reshape(count, 2, 3)
  seen = []

  def double(x):
    seen.append(x.shape)
    return {"twice": 2 * x}

  found = over_first(mapped, double, rows)
  np.testing.assert_array_equal(found["twice"], 2 * rows)
  assert set(seen) == {(2, 3)}
  loops = str(jax.make_jaxpr(lambda x: over_first(lax.map, double, x))(rows)).count("scan")
  assert loops == (count > 1)


def test_tokens_are_one_axis_and_come_back_in_theirs():
  rows = jnp.arange(24.0).reshape(2, 3, 4)
  np.testing.assert_array_equal(flat(lambda x: x @ jnp.ones((4, 1)), rows), rows.sum(-1)[..., None])
