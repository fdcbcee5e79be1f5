"""Prompts attend as in `jax.nn.dot_product_attention`, however their rows are cut."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import attention, cudnn
from grpo_jax.models.kv_cache import as_cached

P, Q, K, H = 2, 4, 2, 8


@pytest.mark.parametrize("length", [12, 13, 15])
@pytest.mark.parametrize(("block_rows", "window"), [(1, None), (3, 4), (5, None), (128, 4)])
def test_prompts_attend_as_the_reference_does(monkeypatch, length, block_rows, window):
  monkeypatch.setattr(attention, "BLOCK_ROWS", block_rows)
  rng = np.random.default_rng(length)
  q, k, v, weights = (
    jnp.asarray(rng.normal(size=(P, length, heads, H)), jnp.float32) for heads in (Q, K, K, Q)
  )
  real = jnp.stack([jnp.arange(length) >= 2, jnp.arange(length) < length - 4])
  back = jnp.arange(length)[:, None] - jnp.arange(length)
  seen = (back >= 0) & (back < (window or length)) & real[:, None]
  used = seen.any(-1)[..., None, None]  # rows that see anything
  weights = jnp.where(used, weights, 0.0)

  def ours(q, k, v):
    return attention.attend_prompt(q, as_cached(k, v), real, window).reshape(q.shape)

  def wanted(q, k, v):
    near = window and (window - 1, 0)
    return jax.nn.dot_product_attention(
      q, k, v, mask=real[:, None, None], is_causal=True, local_window_size=near
    )

  def with_gradients(function):
    out, pull = jax.vjp(function, q, k, v)
    return jnp.where(used, out, 0.0), *pull(weights)

  both = jax.jit(lambda: (with_gradients(ours), with_gradients(wanted)))
  for found, right in zip(*both(), strict=True):
    np.testing.assert_allclose(found, right, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_a_gpu_takes_cudnn_s_kernel_in_both_passes(monkeypatch, window):
  """Lowered here for CUDA; `experiments/check_parity.py` compares its numbers on a GPU."""
  from jax._src.cudnn import fused_attention_stablehlo

  # What jax asks of the machine while it traces.
  version = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
  monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", version)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  real = jnp.arange(16) >= jnp.array([[3], [0]])

  def text(platform, dtype="bfloat16", heads=(Q, K)):
    q, k = (jnp.ones((P, 16, n, H), dtype) for n in heads)
    attend = lambda q, k, v: attention.attend_prompt(q, as_cached(k, v), real, window)
    both = lambda q, k: jax.vjp(attend, q, k, k)[1](jnp.ones((P, 16, Q * H), dtype))
    return jax.jit(both).trace(q, k).lower(lowering_platforms=(platform,)).as_text()

  kernels = lambda found: (
    found.count("@__cudnn$fmhaSoftmax("), found.count("@__cudnn$fmhaSoftmaxBackward(")
  )  # fmt: skip
  assert kernels(text("cuda")) == (1, 1)
  assert kernels(text("cpu")) == kernels(text("cuda", "float32")) == (0, 0)


def test_prompts_are_turned_to_the_right_for_cudnn(monkeypatch):
  """Its arguments given to the reference instead: right padding, lengths, and places as before."""
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(P, 12, n, H)), jnp.float32) for n in (Q, K, K))
  real = jnp.stack([jnp.arange(12) >= 5, (jnp.arange(12) >= 2) & (jnp.arange(12) < 9)])
  reference = jax.nn.dot_product_attention

  def attend(q, k, v, *, query_seq_lengths, key_value_seq_lengths, implementation, **how):
    assert implementation == "cudnn"
    np.testing.assert_array_equal(query_seq_lengths, [7, 7])
    seen = jnp.arange(12) < key_value_seq_lengths[:, None]
    return reference(q, k, v, mask=seen[:, None, None], **how)

  monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
  found = cudnn.attend_prompt(q, as_cached(k, v), real)
  wanted = reference(q, k, v, mask=real[:, None, None], is_causal=True).reshape(found.shape)
  np.testing.assert_allclose(found, jnp.where(real[..., None], wanted, 0), atol=1e-5)


def test_most_of_the_future_costs_nothing():
  scores = lambda length: jax.make_jaxpr(attention.attend_prompt)(
    jnp.zeros((1, length, Q, H)),
    as_cached(*[jnp.zeros((1, length, K, H))] * 2),
    jnp.ones((1, length), bool),
  )  # fmt: skip

  def products(length):
    """Multiplications of all products, in units of one whole array of scores times H."""
    total = 0
    for equation in scores(length).eqns:
      if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        depth = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
        total += depth * np.prod(equation.outvars[0].aval.shape)
    return total / (Q * length**2 * H)

  assert products(128) == 2  # scores, and what they weigh
  assert products(256) == 2 * 3 / 4
  assert products(1024) == 2 * 5 / 8
