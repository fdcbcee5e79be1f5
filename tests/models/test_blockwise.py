"""Attention in blocks: equal to the plain one, forward and backward, in memory that grows with S."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.grpo import GRPOConfig
from grpo_jax.models import DecoderConfig, attention, blockwise
from grpo_jax.models.kv_cache import LayerKV
from grpo_jax.planner.job import Job, trace_learn, trace_sample
from grpo_jax.sampling import SamplingConfig
from grpo_jax.sharding import make_mesh

P, G, Q, H = 2, 3, 4, 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Blocks of 5 keys and a few rows, so that short arrays make many, the last ones not full."""
  monkeypatch.setattr(blockwise, "BLOCK_KEYS", 5)
  monkeypatch.setattr(blockwise, "BLOCK_SCORES", 70)
  monkeypatch.setattr(blockwise, "DENSE_SCORES", 0)


def draw(seed, *shapes, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return [
    jax.random.normal(k, shape).astype(dtype) for k, shape in zip(keys, shapes, strict=True)
  ]


def assert_same(function, reference, arrays, cotangent, tolerance=1e-5):
  """Outputs and gradients agree to a tolerance relative to the largest number."""

  def both(f):
    out, pull = jax.vjp(f, *arrays)
    return out, *pull(cotangent.astype(out.dtype))

  found, wanted = jax.jit(lambda: both(function))(), jax.jit(lambda: both(reference))()
  for x, y in zip(found, wanted, strict=True):
    assert x.dtype == y.dtype
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    assert np.abs(y).max() > 0.1
    np.testing.assert_allclose(x, y, atol=tolerance * max(1, np.abs(y).max()))


def prompt_mask(length):
  """One prompt with padding on the left, one on the right."""
  return jnp.stack([jnp.arange(length) >= 4, jnp.arange(length) < length - 6])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [10, 13, 23])
def test_prompts_attend_as_in_the_reference(kv_heads, length):
  q, k, v, cotangent = draw(
    length, (P, length, Q, H), *[(P, kv_heads, length, H)] * 2, (P, length, Q * H)
  )
  mask = prompt_mask(length)
  seen = jnp.cumsum(mask, axis=1) > 0  # what others see are meaningless numbers: left out
  cotangent *= seen[..., None]
  over = lambda f: (
    lambda q, k, v: jnp.where(
      seen[..., None], attention._over_prompts(f, q, LayerKV(k, v), mask), 0
    )
  )
  assert_same(
    over(blockwise.attend_prompt), over(attention._attend_prompt), (q, k, v), cotangent
  )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [2, 7, 11])
def test_completions_attend_as_in_the_reference(kv_heads, length):
  prompt = 13
  q, k, v, own_k, own_v, cotangent = draw(
    length,
    (P, G, length, Q, H),
    *[(P, kv_heads, prompt, H)] * 2,
    *[(P, G, kv_heads, length, H)] * 2,
    (P, G, length, Q * H),
  )
  mask = prompt_mask(prompt)
  causal = jnp.tril(jnp.ones((length, length), bool))
  over = lambda f: (
    lambda q, k, v, own_k, own_v: attention._over_prompts(
      lambda *args: f(*args, own_mask=causal), q, LayerKV(k, v), LayerKV(own_k, own_v), mask
    )
  )
  assert_same(
    over(blockwise.attend_completion),
    over(attention._attend_completion),
    (q, k, v, own_k, own_v),
    cotangent,
  )


def test_tokens_of_a_cache_attend_as_in_the_reference():
  """Two tokens whose own cache is longer than they are, as in decoding several at once."""
  q, k, v, own_k, own_v = draw(0, (G, 2, Q, H), *[(2, 9, H)] * 2, *[(G, 2, 8, H)] * 2)
  own_mask = jnp.arange(8) <= jnp.array([[3], [4]])
  args = (q, LayerKV(k, v), LayerKV(own_k, own_v), jnp.arange(9) > 2, own_mask)
  np.testing.assert_allclose(
    blockwise.attend_completion(*args), attention._attend_completion(*args), atol=1e-5
  )


def test_a_prompt_without_real_tokens_is_finite_and_unseen():
  length = 12
  q, k, v = draw(1, (length, Q, H), *[(2, length, H)] * 2)
  nothing = jnp.zeros(length, bool)
  out, pull = jax.vjp(lambda *x: blockwise.attend_prompt(x[0], LayerKV(*x[1:]), nothing), q, k, v)
  assert not np.any(out)
  assert not any(np.any(g) for g in pull(jnp.ones_like(out)))

  own = LayerKV(*draw(2, *[(G, 2, 4, H)] * 2))
  causal = jnp.tril(jnp.ones((4, 4), bool))
  both = lambda f: f(q.reshape(G, 4, Q, H), LayerKV(k, v), own, nothing, causal)
  np.testing.assert_allclose(
    both(blockwise.attend_completion), both(attention._attend_completion), atol=1e-5
  )


def test_bfloat16_is_as_close_to_float32_as_the_reference_is():
  length = 40
  exact = draw(3, (length, Q, H), *[(2, length, H)] * 2)
  rough = [x.astype(jnp.bfloat16) for x in exact]
  mask = jnp.arange(length) >= 3
  run = lambda f, x: np.asarray(f(x[0], LayerKV(*x[1:]), mask), np.float32)[3:]
  wanted = run(attention._attend_prompt, exact)
  error = lambda f: np.sqrt(np.mean((run(f, rough) - wanted) ** 2))
  assert error(blockwise.attend_prompt) < 1.2 * error(attention._attend_prompt)


def test_blocks_in_the_future_are_not_visited():
  q, k = jnp.zeros((4, 1, 6, H)), jnp.zeros((3, 1, 4, H))  # 12 tokens of two rows each
  i, j = blockwise._pairs(q, k, rows_per_key=2)
  assert list(zip(i.tolist(), j.tolist(), strict=True)) == [
    (0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2),
  ]  # fmt: skip
  assert len(blockwise._pairs(q, k, rows_per_key=0)[0]) == 12


def test_short_sequences_keep_the_plain_program(monkeypatch):
  monkeypatch.setattr(blockwise, "DENSE_SCORES", Q * 12 * 12)
  q, k, v = draw(4, (1, 12, Q, H), *[(1, 2, 12, H)] * 2)
  trace = lambda q: str(jax.make_jaxpr(attention.attend_prompt)(q, LayerKV(k, v), jnp.ones(k.shape[::2], bool)))
  assert "scan" not in trace(q)
