"""The group layout against the repeated one: the same log-probs, entropies and gradients."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import completion_logprobs, forward, token_logprobs

P, G, S, T, V = 3, 4, 7, 6, 67
LENGTHS = (4, 7, 1)


@pytest.fixture(scope="module")
def batch(tiny):
  """Prompts (padded on the left), their mask, completions, and weights of some of their tokens."""
  rng = np.random.default_rng(0)
  prompts, drawn = rng.integers(0, V, (P, S)), rng.integers(0, V, (P, G, T))
  mask = np.arange(S) >= S - np.array(LENGTHS)[:, None]
  kept = np.arange(T) < rng.integers(1, T + 1, (P, G, 1))
  return prompts, mask, drawn, rng.normal(size=(P, G, T)) * kept


def turned(prompts, mask):
  """The same prompts, padded on the right."""
  order = np.argsort(~mask, axis=1, kind="stable")
  return np.take_along_axis(prompts, order, 1), np.take_along_axis(mask, order, 1)


grouped = jax.jit(completion_logprobs, static_argnums=0, static_argnames=("chunk", "remat"))


@functools.partial(jax.jit, static_argnums=0)
def repeated(config, params, prompts, mask, drawn):
  """What every other trainer does: each candidate in a row of its own, all the logits at once."""
  rows = jnp.concatenate([jnp.repeat(prompts, G, axis=0), drawn.reshape(P * G, -1)], axis=1)
  seen = jnp.concatenate([jnp.repeat(mask, G, axis=0), jnp.ones((P * G, drawn.shape[2]), bool)], 1)
  table = jax.nn.log_softmax(forward(config, params, rows, seen)[:, prompts.shape[1] - 1 : -1])
  logp = jnp.take_along_axis(table, drawn.reshape(P * G, -1, 1), axis=-1)[..., 0]
  entropy = -jnp.sum(jnp.exp(table) * table, axis=-1)
  return logp.reshape(drawn.shape), entropy.reshape(drawn.shape)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=("chunk", "remat"))
def slope_of(score, config, params, prompts, mask, drawn, weights, **options):
  loss = lambda p: jnp.sum(score(config, p, prompts, mask, drawn, **options)[0] * weights)
  return jax.grad(loss)(params)


def assert_close(found, wanted, relative):
  for path, leaf in jax.tree_util.tree_flatten_with_path(wanted)[0]:
    other = found
    for key in path:
      other = other[key.key]
    scale = np.abs(leaf).max()
    assert scale > 0, path
    np.testing.assert_allclose(other, leaf, atol=relative * scale, rtol=0, err_msg=str(path))


@pytest.fixture(scope="module")
def reference(tiny, batch):
  scores = repeated(*tiny, *batch[:3])
  return (*map(np.asarray, scores), slope_of(repeated, *tiny, *batch))


@pytest.mark.parametrize("side", ["left", "right"])
def test_group_layout_equals_the_repeated_layout(tiny, batch, reference, side):
  prompts, mask, drawn, weights = batch
  if side == "right":
    prompts, mask = turned(prompts, mask)
  logp, entropy, slope = reference
  scores = grouped(*tiny, prompts, mask, drawn)
  assert scores.logp.dtype == scores.entropy.dtype == jnp.float32
  np.testing.assert_allclose(scores.logp, logp, atol=1e-5)
  np.testing.assert_allclose(scores.entropy, entropy, atol=1e-5)
  assert logp.std() > 1  # otherwise the bound would say little
  found = slope_of(grouped, *tiny, prompts, mask, drawn, weights)
  assert_close(found, slope, 1e-4)


def test_a_wider_bucket_changes_nothing(tiny, batch, reference):
  prompts, mask, drawn, _ = batch
  wide = np.pad(prompts, ((0, 0), (5, 0)), constant_values=9), np.pad(mask, ((0, 0), (5, 0)))
  longer = np.pad(drawn, ((0, 0), (0, 0), (0, 4)), constant_values=3)
  scores = grouped(*tiny, *wide, longer)
  np.testing.assert_allclose(scores.logp[..., :T], reference[0], atol=1e-5)


@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 5, "remat": "layers"}])
def test_chunks_and_rematerialisation_change_nothing(tiny, batch, reference, options):
  found = grouped(*tiny, *batch[:3], **options)
  np.testing.assert_allclose(found.logp, reference[0], atol=1e-5)
  np.testing.assert_allclose(found.entropy, reference[1], atol=1e-5)
  assert_close(slope_of(grouped, *tiny, *batch, **options), reference[2], 1e-4)


def test_completions_of_one_token_are_scored(tiny, batch):
  prompts, mask, drawn, _ = batch
  found = grouped(*tiny, prompts, mask, drawn[..., :1])
  wanted, entropy = repeated(*tiny, prompts, mask, drawn[..., :1])
  np.testing.assert_allclose(found.logp, wanted, atol=1e-5)
  np.testing.assert_allclose(found.entropy, entropy, atol=1e-5)


def test_all_logits_are_never_alive_at_once(tiny, batch):
  prompts, mask, drawn, weights = batch
  config, params = tiny
  chunk = 4

  def largest(chunk):
    """The most elements of any array with a vocabulary axis, the parameters' own shapes aside."""
    score = lambda p: completion_logprobs(config, p, prompts, mask, drawn, chunk=chunk).logp
    loss = lambda p: jnp.sum(score(p) * weights)
    text = str(jax.make_jaxpr(jax.value_and_grad(loss))(params))  # nested programs included
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)}
    return max(int(np.prod(s)) for s in shapes if V in s and s not in ((V, 32), (32, V)))

  assert largest(chunk) == P * chunk * V  # forward and backward
  assert largest(G * T) == P * G * T * V  # so the measure would see them


def test_entropy_is_a_diagnostic_without_a_gradient():
  keys = jax.random.split(jax.random.key(0), 3)
  hidden, kernel = jax.random.normal(keys[0], (2, 5, 8)), jax.random.normal(keys[1], (8, V))
  targets = jax.random.randint(keys[2], (2, 5), 0, V)
  slope = jax.grad(lambda h: token_logprobs(h, kernel.T, targets).entropy.sum())(hidden)
  np.testing.assert_array_equal(slope, 0.0)
  # Equal logits: entropy ln V and log-probs -ln V.
  scores = token_logprobs(jnp.zeros((1, 3, 8)), kernel.T, targets[:1, :3])
  np.testing.assert_allclose(scores.entropy, np.log(V), rtol=1e-6)
  np.testing.assert_allclose(scores.logp, -np.log(V), rtol=1e-6)


@pytest.mark.parametrize("chunk", [None, 2])
def test_gradients_of_the_scores_are_those_of_a_log_softmax(chunk):
  keys = jax.random.split(jax.random.key(0), 4)
  hidden, kernel = jax.random.normal(keys[0], (2, 5, 8)), jax.random.normal(keys[1], (8, V))
  targets = jax.random.randint(keys[2], (2, 5), 0, V)
  weights = jax.random.normal(keys[3], (2, 5))

  def ours(hidden, kernel):
    return token_logprobs(hidden, kernel.T, targets, temperature=0.7, chunk=chunk).logp

  def plain(hidden, kernel):
    table = jax.nn.log_softmax(hidden @ kernel / 0.7)
    return jnp.take_along_axis(table, targets[..., None], axis=-1)[..., 0]

  slope = lambda f: jax.jit(jax.grad(lambda *x: jnp.sum(f(*x) * weights), (0, 1)))
  for found, wanted in zip(slope(ours)(hidden, kernel), slope(plain)(hidden, kernel), strict=True):
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
