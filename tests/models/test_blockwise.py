"""Attention in blocks of rows: the plain one in both passes, in memory that grows with S."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.grpo import GRPOConfig
from grpo_jax.models import DecoderConfig, attention, blockwise, splash
from grpo_jax.models.kv_cache import LayerKV
from grpo_jax.planner import parse_topology, plan_mesh
from grpo_jax.planner.job import Job, trace_sample, trace_update
from grpo_jax.sampling import SamplingConfig
from grpo_jax.sharding import make_mesh

P, G, Q, H = 2, 3, 4, 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Blocks of a few rows, so that short arrays make many, the last ones not full."""
  monkeypatch.setattr(blockwise, "BLOCK_SCORES", 200)
  monkeypatch.setattr(blockwise, "DENSE_SCORES", 0)
  monkeypatch.setattr(attention, "BLOCK_ROWS", 5)


def plain(function):
  """The same function, traced as for short sequences: the reference."""

  def call(*args):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(blockwise, "DENSE_SCORES", 2**40)
      return function(*args)

  return call


def draw(seed, *shapes):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def assert_same(function, reference, arrays, cotangent, tolerance=1e-5):
  """Outputs and gradients agree to a tolerance relative to the largest number."""

  def both(f, arrays, cotangent):
    out, pull = jax.vjp(f, *arrays)
    return out, *pull(cotangent.astype(out.dtype))

  found, wanted = jax.jit(lambda *args: (both(function, *args), both(reference, *args)))(
    arrays, cotangent
  )
  for x, y in zip(found, wanted, strict=True):
    assert x.dtype == y.dtype
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    assert np.abs(y).max() > 0.1
    np.testing.assert_allclose(x, y, atol=tolerance * max(1, np.abs(y).max()))


def cached(k, v):
  """Keys and values [.., K, S, H] as they are cached."""
  return LayerKV(k.swapaxes(-1, -2), v)


def prompt_mask(length):
  """One prompt with padding on the left, one on the right."""
  return jnp.stack([jnp.arange(length) >= 4, jnp.arange(length) < length - 6])


@pytest.mark.parametrize("kv_heads, length, window", [(1, 13, None), (2, 23, 6), (4, 10, "own")])
def test_prompts_attend_as_in_the_reference(kv_heads, length, window):
  q, k, v, cotangent = draw(
    length, (P, length, Q, H), *[(P, kv_heads, length, H)] * 2, (P, length, Q * H)
  )
  mask = prompt_mask(length)
  seen = jnp.cumsum(mask, axis=1) > 0  # what others see are meaningless numbers: left out
  seen &= (window is None) | mask  # and padding may be too far from what is real
  cotangent *= seen[..., None]
  reach = jnp.int32(4) if window == "own" else window  # a layer's own, or the same in all
  attend = lambda q, k, v: jnp.where(
    seen[..., None], attention.attend_prompt(q, cached(k, v), mask, reach), 0
  )
  assert "scan" in str(jax.make_jaxpr(attend)(q, k, v))
  assert_same(attend, plain(attend), (q, k, v), cotangent)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("kv_heads, length", [(1, 7), (2, 11), (4, 2)])
def test_completions_attend_as_in_the_reference(kv_heads, length, by_row):
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
  if by_row:  # as a window makes it: the later a token, the less of the prompt it sees
    mask = mask[:, None] & (jnp.arange(prompt) >= jnp.arange(length)[:, None])
  attend = lambda q, k, v, own_k, own_v: attention.attend_completion(
    q, cached(k, v), cached(own_k, own_v), mask, causal
  )
  assert "scan" in str(jax.make_jaxpr(attend)(q, k, v, own_k, own_v))
  assert_same(attend, plain(attend), (q, k, v, own_k, own_v), cotangent)


def test_tokens_of_a_cache_attend_as_in_the_reference():
  """Two tokens whose own cache is longer than they are, as in decoding several at once."""
  q, k, v, own_k, own_v = draw(0, (1, G, 2, Q, H), *[(1, 2, 9, H)] * 2, *[(1, G, 2, 8, H)] * 2)
  own_mask = jnp.arange(8) <= jnp.array([[3], [4]])
  args = (q, cached(k, v), cached(own_k, own_v), jnp.arange(9)[None] > 2, own_mask)
  attend = attention.attend_completion
  found, wanted = jax.jit(lambda: (attend(*args), plain(attend)(*args)))()
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_prompt_without_real_tokens_is_finite():
  length = 12
  q, k, v = draw(1, (1, length, Q, H), *[(1, 2, length, H)] * 2)
  own = cached(*draw(2, *[(1, G, 2, 4, H)] * 2))
  nothing, causal = jnp.zeros((1, length), bool), jnp.tril(jnp.ones((4, 4), bool))

  @jax.jit
  def run():
    alone = lambda q, k, v: attention.attend_prompt(q, cached(k, v), nothing)
    out, pull = jax.vjp(alone, q, k, v)
    both = lambda: attention.attend_completion(
      q.reshape(1, G, 4, Q, H), cached(k, v), own, nothing, causal
    )
    return (out, *pull(jnp.ones_like(out))), (both(), plain(both)())

  alone, (found, wanted) = run()
  assert all(np.isfinite(x).all() for x in alone)
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_bfloat16_is_as_close_to_float32_as_the_reference_is():
  length = 40
  exact = draw(3, (1, length, Q, H), *[(1, 2, length, H)] * 2)
  rough = [x.astype(jnp.bfloat16) for x in exact]
  mask = jnp.arange(length)[None] >= 3
  attend = lambda q, k, v: attention.attend_prompt(q, cached(k, v), mask)
  run = lambda f, x: np.asarray(jax.jit(f)(*x), np.float32)[0, 3:]
  wanted = run(plain(attend), exact)
  error = lambda f: np.sqrt(np.mean((run(f, rough) - wanted) ** 2))
  assert error(attend) < 1.2 * error(plain(attend))


def test_rows_come_in_even_blocks():
  (weights,) = draw(6, (7, 3))
  rows, scale, known = jnp.arange(119.0).reshape(17, 7) / 100, jnp.arange(17) % 3, jnp.arange(3) > 0
  sizes = []

  def attend(weights, known, rows, scale):
    sizes.append(rows.shape[0])
    return jnp.where(known, jnp.sin(rows @ weights), 0) * scale[:, None]

  # 200 // 40 = 5 rows at most: 4 blocks, the last one filled up.
  both = lambda f: jax.vjp(f, weights, rows)
  found, pull = both(lambda w, r: blockwise.in_blocks(attend, 40, w, known, r, scale))
  assert set(sizes) == {5}
  wanted, reference = both(lambda w, r: attend(w, known, r, scale))
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  for x, y in zip(pull(wanted), reference(wanted), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_short_sequences_keep_the_plain_program(monkeypatch):
  monkeypatch.setattr(blockwise, "DENSE_SCORES", Q * 12 * 12)
  q, k, v = draw(4, (1, 12, Q, H), *[(1, 2, 12, H)] * 2)
  mask = jnp.ones((1, 12), bool)
  text = lambda: str(jax.make_jaxpr(lambda q: attention.attend_prompt(q, cached(k, v), mask))(q))
  assert "scan" not in text()
  monkeypatch.setattr(blockwise, "DENSE_SCORES", Q * 12 * 12 - 1)
  assert "scan" in text()


def test_a_step_on_prompts_of_32k_compiles_without_their_scores(monkeypatch):
  monkeypatch.undo()
  length, heads = 32768, 4
  policy = DecoderConfig(256, 64, 128, 2, heads, 2, 16)
  grpo = GRPOConfig(sampling=SamplingConfig(group_size=2, max_tokens=16))
  job = Job(policy, make_mesh(), grpo, 1, length)
  for traced in (trace_sample(job), trace_update(job)):
    used = traced.lower().compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * heads * length**2 / 16


def test_blocks_on_a_mesh_are_the_same_and_send_nothing_more(tmp_path):
  script = Path(__file__).parents[1] / "block_mesh.py"
  command = [sys.executable, str(script), str(tmp_path / "out.npz"), "data:2,fsdp:2,tensor:2"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  with np.load(tmp_path / "out.npz") as found:
    assert found["blocks/loops"] > found["plain/loops"]
    np.testing.assert_array_equal(found["blocks/sent"], found["plain/sent"])
    for name in ("logp", "gradient"):
      scale = np.abs(found[f"plain/{name}"]).max()
      np.testing.assert_allclose(
        found[f"blocks/{name}"], found[f"plain/{name}"], atol=1e-5 * scale, err_msg=name
      )


@pytest.mark.parametrize("window", [None, 60])
def test_the_tpu_kernel_attends_as_in_the_reference(monkeypatch, window):
  """In Pallas' interpreter; its blocks smaller, so that there are several."""
  monkeypatch.setattr(splash, "BLOCK", 128)
  length, width = 256, 128
  q, k, v, cotangent = draw(
    5, (P, length, 2, width), *[(P, 1, length, width)] * 2, (P, length, 2 * width)
  )
  mask = jnp.stack([jnp.arange(length) >= 100, jnp.arange(length) < 150])
  assert splash.suits(q, cached(k, v))
  assert not splash.suits(q[:, 1:], cached(k, v))
  over = lambda f: lambda q, k, v: jnp.where(mask[..., None], f(q, cached(k, v), mask), 0)
  assert_same(
    over(functools.partial(splash.attend_prompt, window=window, interpret=True)),
    over(plain(functools.partial(attention.attend_prompt, window=window))),
    (q, k, v),
    jnp.where(mask[..., None], cotangent, 0),
  )


@pytest.mark.slow
def test_a_tpu_takes_its_kernel_for_long_prompts(monkeypatch):
  monkeypatch.undo()
  pytest.importorskip("libtpu")
  mesh = plan_mesh("fsdp:2,tensor:2", parse_topology("v5e:2x2"))
  policy = DecoderConfig(256, 512, 256, 2, 4, 2, 128, dtype="bfloat16")
  grpo = GRPOConfig(sampling=SamplingConfig(group_size=2, max_tokens=16), remat="layers")
  compiled = trace_update(Job(policy, mesh, grpo, 4, 32768)).lower().compile()
  kernels = compiled.as_text().count('custom_call_target="tpu_custom_call"')
  # Of the one layer in the loop: forward, again, the queries' gradient, that of keys and values.
  assert kernels == 4
  scores = 4 * 2 * 2 * 32768**2  # float32, of a device's two prompts and two heads
  assert compiled.memory_analysis().temp_size_in_bytes < scores / 14
