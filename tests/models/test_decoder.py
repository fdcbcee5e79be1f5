"""Cached decoding against the uncached forward, padding, causality, initial weights."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import (
  DecoderConfig,
  decode_step,
  empty_completion_cache,
  forward,
  init_params,
  logits_of,
  prefill,
  unstacked,
)
from grpo_jax.models.decoder import completion_hidden, positions_of
from grpo_jax.models.induction_init import init_induction_params
from grpo_jax.planner.flops import count_flops

LENGTHS = (5, 8, 1)
run = jax.jit(forward, static_argnums=0)
encode = jax.jit(prefill, static_argnums=0)
step = jax.jit(decode_step, static_argnums=0)


def padded(rows, width, side, filler=0):
  """Stacks rows into tokens and mask [P, width], with `filler` in the padding."""
  tokens = np.full((len(rows), width), filler, np.int32)
  mask = np.zeros((len(rows), width), bool)
  for i, row in enumerate(rows):
    place = slice(width - len(row), None) if side == "left" else slice(len(row))
    tokens[i, place], mask[i, place] = row, True
  return tokens, mask


@pytest.fixture(scope="module")
def rows(tiny):
  rng = np.random.default_rng(0)
  return [rng.integers(0, tiny[0].vocab_size, n) for n in LENGTHS]


def alone(tiny, row):
  """Logits [L, V] of one sequence without any padding."""
  return np.asarray(run(*tiny, row[None], np.ones((1, len(row)), bool)))[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_decode_equals_the_uncached_forward(tiny, rows, side):
  config, params = tiny
  group, length = 3, 6
  drawn = np.random.default_rng(1).integers(0, config.vocab_size, (len(rows), group, length))
  tokens, mask = padded(rows, 9, side)
  cache, hidden = encode(config, params, tokens, mask)
  found = [jnp.broadcast_to(logits_of(config, params, hidden)[:, None], (3, group, 67))]
  own = empty_completion_cache(config, len(rows), group, length)
  params = unstacked(config, params)
  for t in range(length):
    hidden, own = step(config, params, drawn[..., t], cache, own, jnp.int32(t))
    found.append(logits_of(config, params, hidden))
  found = np.stack(found, axis=2)  # [P, G, 1 + T, V]
  for p, row in enumerate(rows):
    for g in range(group):
      whole = alone(tiny, np.concatenate([row, drawn[p, g]]))
      np.testing.assert_allclose(found[p, g], whole[len(row) - 1 :], atol=1e-5)
  assert found.std() > 1  # otherwise the bound would say little


def test_the_prompt_is_cached_once_for_its_group(tiny, rows):
  config, params = tiny
  tokens, mask = padded(rows, 8, "left")
  cache, _ = encode(config, params, tokens, mask)
  for layer in cache.layers:
    assert layer.k.shape == (3, config.num_kv_heads, config.head_dim, 8)
    assert layer.v.shape == (3, config.num_kv_heads, 8, config.head_dim)
  np.testing.assert_array_equal(cache.length, LENGTHS)


def test_padding_side_width_and_content_change_nothing(tiny, rows):
  for side, width, filler in (("left", 8, 0), ("left", 13, 66), ("right", 8, 5), ("right", 16, 0)):
    tokens, mask = padded(rows, width, side, filler)
    logits = np.asarray(run(*tiny, tokens, mask))
    assert logits.dtype == np.float32 and np.isfinite(logits).all()
    for i, row in enumerate(rows):
      np.testing.assert_allclose(logits[i][mask[i]], alone(tiny, row), atol=1e-5)


def test_a_token_sees_its_past_only(tiny):
  row = np.arange(1, 9)
  before = alone(tiny, row)
  row[5] = 40
  after = alone(tiny, row)
  np.testing.assert_allclose(after[:5], before[:5], atol=1e-6)
  assert (np.abs(after[5:] - before[5:]).max(axis=-1) > 1e-2).all()


def test_order_matters_through_rope_alone(tiny):
  # Same bag of tokens, another order: only positions tell the two apart.
  one, two = alone(tiny, np.array([3, 9, 20, 7])), alone(tiny, np.array([9, 3, 20, 7]))
  assert np.abs(one[-1] - two[-1]).max() > 1e-2


def test_positions_count_real_tokens():
  mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
  wanted = [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 0, 0, 0]]
  np.testing.assert_array_equal(positions_of(mask), wanted)


def test_a_row_of_padding_gives_no_nan_even_in_gradients(tiny):
  config, params = tiny
  tokens = np.zeros((2, 4), np.int32)
  mask = np.array([[True] * 4, [False] * 4])
  loss = lambda p: jnp.sum(forward(config, p, tokens, mask)[0] ** 2)
  slope = jax.jit(jax.grad(loss))(params)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))


def test_bfloat16_compute_keeps_float32_logits_close(tiny, rows):
  config, params = tiny
  tokens, mask = padded(rows, 8, "left")
  low = np.asarray(run(dataclasses.replace(config, dtype="bfloat16"), params, tokens, mask))
  assert low.dtype == np.float32
  difference = np.abs(low - np.asarray(run(config, params, tokens, mask)))[mask]
  assert 1e-4 < difference.max() < 0.5 and difference.mean() < 0.05


def test_initial_weights_are_qwens_and_a_function_of_the_key(tiny):
  config = dataclasses.replace(tiny[0], vocab_size=300)
  params = init_params(config, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, params, init_params(config, jax.random.key(0)))
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    assert leaf.dtype == jnp.float32
    if path[-1].key == "scale":
      np.testing.assert_array_equal(leaf, 1.0)
    elif path[-1].key == "bias":
      np.testing.assert_array_equal(leaf, 0.0)
    else:
      assert float(leaf.std()) == pytest.approx(0.02, rel=0.15)
  other = init_params(config, jax.random.key(1))["layers"]["q"]["kernel"][1]
  kernels = params["layers"]["q"]["kernel"]
  assert not np.allclose(*kernels) and not np.allclose(kernels[1], other)


INDUCTION = DecoderConfig(
  200, 128, 64, 2, 4, 2, 32, rope_theta=1e6, tie_embeddings=True, attention_bias=True
)


def test_the_induction_start_already_copies():
  params = init_induction_params(INDUCTION, jax.random.key(0))
  # Distinct tokens twice over: in the second half each token has been followed by another before.
  rng = np.random.default_rng(0)
  words = np.stack([rng.permutation(200)[:20] for _ in range(8)])
  tokens = np.concatenate([words, words], axis=1)

  def right_rank(params):
    logits = np.asarray(run(INDUCTION, params, tokens, np.ones(tokens.shape, bool)))[:, 20:-1]
    target = np.take_along_axis(logits, tokens[:, 21:, None], axis=-1)
    return (logits > target).sum(-1).mean()  # 0 is certain, about 100 is chance

  plain = right_rank(init_params(INDUCTION, jax.random.key(0)))
  assert plain > 50
  assert right_rank(params) < plain / 4


def test_the_induction_start_says_which_shapes_it_cannot_take():
  start = functools.partial(init_induction_params, key=jax.random.key(0))
  for changes, message in (
    ({"tie_embeddings": False}, "tied embeddings"),
    ({"num_layers": 1}, "2 layers"),
    ({"num_kv_heads": 4}, "2 query heads per key/value head"),
    ({"rope_theta": 100.0}, "slower rotary frequencies"),
  ):
    with pytest.raises(ValueError, match=message):
      start(dataclasses.replace(INDUCTION, **changes))


def test_what_the_backward_pass_computes_again(tiny):
  config, params = tiny
  tokens, mask, drawn = np.ones((2, 4), int), np.ones((2, 4), bool), np.ones((2, 2, 5), int)

  def work(remat):
    loss = lambda p: completion_hidden(config, p, tokens, mask, drawn, remat=remat).sum()
    return count_flops(jax.make_jaxpr(jax.value_and_grad(loss))(params))

  kernels = {name: x["kernel"][0].size for name, x in params["layers"].items() if "kernel" in x}
  del kernels["down"]  # nothing needs its result once more
  tokens_run = 2 * (4 + 2 * 4)
  weights = config.num_layers * 2 * tokens_run * sum(kernels.values())
  assert work("none") < work("dots")  # attention's products
  assert work("layers") - work("dots") == weights


GEMMA = {
  "windows": (3, 0), "local_rope_theta": 50.0, "norm_offset": 0.5, "query_pre_attn_scalar": 11,
  "scale_embedding": True, "activation": "gelu_tanh",
}  # fmt: skip


@pytest.mark.parametrize(
  "changes", [{"windows": (3, 3)}, {"windows": (0, 3)}, GEMMA], ids=["alike", "mixed", "gemma"]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_windows_hold_in_decoding_and_in_training(tiny, rows, side, changes):
  """Beyond the window, too: completions of six tokens after prompts of up to eight."""
  config, params = dataclasses.replace(tiny[0], **changes), tiny[1]
  group, length = 2, 6
  drawn = np.random.default_rng(1).integers(0, config.vocab_size, (len(rows), group, length))
  tokens, mask = padded(rows, 9, side)
  cache, hidden = encode(config, params, tokens, mask)
  found = [jnp.broadcast_to(logits_of(config, params, hidden)[:, None], (3, group, 67))]
  own = empty_completion_cache(config, len(rows), group, length)
  apart = unstacked(config, params)
  for t in range(length - 1):
    hidden, own = step(config, apart, drawn[..., t], cache, own, jnp.int32(t))
    found.append(logits_of(config, params, hidden))
  trained = jax.jit(completion_hidden, static_argnums=0)(config, params, tokens, mask, drawn)
  trained = logits_of(config, params, trained)
  for p, row in enumerate(rows):
    for g in range(group):
      whole = alone((config, params), np.concatenate([row, drawn[p, g]]))[len(row) - 1 : -1]
      np.testing.assert_allclose(np.stack(found, axis=2)[p, g], whole, atol=1e-5)
      np.testing.assert_allclose(trained[p, g], whole, atol=1e-5)
  plain = alone(tiny, np.concatenate([rows[1], drawn[1, 0]]))[-1]
  assert (
    np.abs(plain - alone((config, params), np.concatenate([rows[1], drawn[1, 0]]))[-1]).max() > 0.1
  )
