"""What is done for XLA on CPU changes no number, and is not done for other platforms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from grpo_jax.models.xla_cpu import flat, over_first, project, stored

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)


def products(function, platform):
  """The matrix products of a program that is lowered for a platform, as text."""
  text = jax.jit(function).trace(X, W).lower(lowering_platforms=(platform,)).as_text()
  return [line for line in text.splitlines() if "dot_general" in line]


def test_rotations_are_stored_through_a_product_on_cpu_alone():
  np.testing.assert_array_equal(jax.jit(stored)(X), X)
  through = lambda x, _: stored(jnp.cos(x))
  assert len(products(through, "cpu")) == 1
  assert products(through, "tpu") == products(through, "cuda") == []


def test_the_gradient_of_a_projection_is_jax_s_own():
  slope = lambda f: jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), (0, 1))
  ours, plain = slope(project), slope(lambda x, w: x @ w)
  for found, wanted in zip(jax.jit(ours)(X, W), jax.jit(plain)(X, W), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
  assert len(products(ours, "cpu")) == len(products(ours, "tpu")) == 3
  # g^T x, [3, 6], elsewhere; x^T g, [6, 3], here.
  weight = lambda platform: [line for line in products(ours, platform) if "tensor<6x3xf32>" in
                             line.rpartition("->")[2]]  # fmt: skip
  assert len(weight("cpu")) == 1 and not weight("tpu")


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
