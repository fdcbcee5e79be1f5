"""The supervised loss against the forward pass, and what its optimizer does."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import losses
from grpo_jax.grpo import GRPOConfig, make_batch, policy_gradient
from grpo_jax.models import forward
from grpo_jax.sampling import SamplingConfig
from grpo_jax.sft import (
  SFTBatch,
  SFTConfig,
  demonstration_rollout,
  make_sft_step,
  sft_loss,
  sft_optimizer,
)
from grpo_jax.types import Prompts

loss_of = jax.jit(sft_loss, static_argnums=0)
whole = jax.jit(forward, static_argnums=0)


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  learned = np.array([[[0, 1, 1, 1, 0], [1, 1, 0, 0, 0]], [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]])
  return SFTBatch(
    rng.integers(0, 67, (2, 4)).astype(np.int32),
    np.array([[False, True, True, True], [True] * 4]),
    rng.integers(0, 67, (2, 2, 5)).astype(np.int32),
    learned.astype(np.float32),
  )


def test_loss_is_the_mean_over_the_learned_tokens(tiny, batch):
  losses, sure = [], []
  for p in range(2):
    for g in range(2):
      tokens = np.concatenate([batch.prompt_tokens[p], batch.completion_tokens[p, g]])[None]
      seen = np.concatenate([batch.prompt_mask[p], np.ones(5, bool)])[None]
      table = jax.nn.log_softmax(whole(*tiny, tokens, seen)[0, 3:-1])
      logp = np.asarray(table)[np.arange(5), batch.completion_tokens[p, g]]
      losses += list(-logp[batch.loss_weights[p, g] > 0])
      sure += list(logp[batch.loss_weights[p, g] > 0] > np.log(0.5))
  assert len(losses) == 7
  loss, metrics = loss_of(*tiny, batch)
  assert float(loss) == pytest.approx(np.mean(losses), abs=1e-5)
  assert float(metrics["nll"]) == float(loss)
  assert float(metrics["accuracy"]) == pytest.approx(np.mean(sure), abs=1e-6)


def test_what_follows_the_last_learned_token_does_not_matter(tiny, batch):
  changed = batch.completion_tokens.copy()
  changed[0, 0, 4], changed[0, 1, 2:], changed[1, 1] = 1, 2, 3
  other = batch._replace(completion_tokens=changed)
  assert float(loss_of(*tiny, other)[0]) == pytest.approx(float(loss_of(*tiny, batch)[0]), abs=1e-6)
  nothing = batch._replace(loss_weights=np.zeros_like(batch.loss_weights))
  assert float(loss_of(*tiny, nothing)[0]) == 0


def test_tokens_count_by_their_weight(tiny, batch):
  one, two = np.zeros((2, 2, 2, 5), np.float32)
  one[0, 0, 1] = two[1, 1, 3] = 1
  first, second = (float(loss_of(*tiny, batch._replace(loss_weights=w))[0]) for w in (one, two))
  both = batch._replace(loss_weights=one + 0.25 * two)
  assert float(loss_of(*tiny, both)[0]) == pytest.approx((first + 0.25 * second) / 1.25, abs=1e-5)
  assert float(loss_of(*tiny, both)[1]["nll"]) == pytest.approx(first, abs=1e-5)


def test_training_learns_the_learned_tokens_by_heart(tiny, batch):
  config, params = tiny
  cfg = SFTConfig(learning_rate=0.02, warmup_steps=3, total_steps=40)
  tx = sft_optimizer(cfg)
  step = make_sft_step(config, cfg, tx)
  params = jax.tree.map(jnp.copy, params)  # the step takes its buffers
  opt_state, found = tx.init(params), []
  for _ in range(40):
    params, opt_state, metrics = step(params, opt_state, batch)
    found.append({name: float(value) for name, value in metrics.items()})
  assert found[0]["nll"] > 2 and found[-1]["nll"] < 0.1 and found[-1]["accuracy"] == 1
  assert found[0]["grad_norm"] > 0


def test_learning_rate_warms_up_and_follows_one_cosine():
  # Without weight decay Adam's update of a constant gradient is the learning rate.
  cfg = SFTConfig(learning_rate=0.1, warmup_steps=4, total_steps=20, weight_decay=0.0)
  tx = sft_optimizer(cfg)
  params = {"kernel": jnp.zeros((1, 1))}
  state, rates = tx.init(params), []
  for _ in range(21):
    updates, state = tx.update({"kernel": jnp.full((1, 1), 0.5)}, state, params)
    rates.append(-float(updates["kernel"][0, 0]))
  np.testing.assert_allclose(rates[:5], [0, 0.025, 0.05, 0.075, 0.1], atol=1e-6)
  assert rates[12] == pytest.approx((0.1 + 0.005) / 2, abs=1e-6)  # half-way down the cosine
  assert rates[20] == pytest.approx(0.005, abs=1e-6)
  assert rates[4:] == sorted(rates[4:], reverse=True)


def test_only_matrices_decay_and_large_gradients_are_clipped():
  cfg = SFTConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=1.0)
  tx = sft_optimizer(cfg)
  params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)}
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5, rtol=1e-6)
  np.testing.assert_array_equal(updates["bias"], 0)
  np.testing.assert_array_equal(updates["scale"], 0)
  # Adam hides a constant factor; its first moment does not: 0.1 * 1 / 2 for four entries of norm 1.
  large = {"kernel": jnp.full((2, 2), 100.0), "bias": jnp.zeros(2), "scale": jnp.zeros(2)}
  _, state = tx.update(large, tx.init(params), params)
  np.testing.assert_allclose(optax.tree_utils.tree_get(state, "mu")["kernel"], 0.05, rtol=1e-5)


@pytest.mark.parametrize(
  "wrong", [{"warmup_steps": 1000}, {"warmup_steps": -1}, {"learning_rate": 0.0}]
)
def test_settings_out_of_range_are_refused(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    SFTConfig(**wrong)


def test_muon_takes_each_layer_s_matrix_for_itself(tiny):
  """Stacked layers move as separate ones do under Muon for matrices; the rest goes to AdamW."""
  _, params = tiny
  cfg = SFTConfig(learning_rate=0.01, muon_learning_rate=0.02, warmup_steps=0, weight_decay=0.1)
  rng = np.random.default_rng(0)
  grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
  tx = sft_optimizer(cfg)
  found, _ = jax.jit(tx.update)(grads, tx.init(params), params)

  apart = lambda tree: (
    {name: x for name, x in tree.items() if name != "layers"}
    | {f"layers_{n}": jax.tree.map(lambda x, n=n: x[n], tree["layers"]) for n in range(2)}
  )
  schedule = lambda peak: optax.warmup_cosine_decay_schedule(0.0, peak, 0, 1000, 0.05 * peak)
  in_a_layer = lambda path, x: path[0].key.startswith("layers_") and x.ndim == 2
  one = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.contrib.muon(
      schedule(0.02), weight_decay=0.1, adam_b2=0.98, adam_learning_rate=schedule(0.01),
      muon_weight_dimension_numbers=lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, x: optax.contrib.MuonDimensionNumbers() if in_a_layer(path, x) else None, tree
      ),
    ),
  )  # fmt: skip
  wanted, _ = jax.jit(one.update)(apart(grads), one.init(apart(params)), apart(params))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-6), apart(found), wanted
  )


def test_stacked_norms_and_biases_do_not_decay(tiny):
  _, params = tiny
  cfg = SFTConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
  tx = sft_optimizer(cfg)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  for path, leaf in jax.tree_util.tree_flatten_with_path(updates)[0]:
    assert np.any(leaf) == (path[-1].key in ("kernel", "embedding")), path


@pytest.fixture(scope="module")
def demonstrated(tiny):
  """Four prompts with one demonstration each, and what a step makes of them."""
  rng = np.random.default_rng(0)
  mask = np.arange(7) >= 7 - np.array([3, 7, 5, 1])[:, None]
  prompts = Prompts(rng.integers(0, 67, (4, 7)).astype(np.int32), mask, np.arange(4))
  answers = [rng.integers(0, 67, length).tolist() for length in (1, 5, 2, 6)]
  rollout = demonstration_rollout(prompts, answers, SETTINGS.sampling)
  # No group of one has a spread, and no reward is looked at.
  return answers, make_batch(rollout, np.float32([[1], [0], [1], [0]]), None, SETTINGS)


SETTINGS = GRPOConfig(SamplingConfig(8, 6, pad_id=1), technique="sft", aggregation="token")
gradient = jax.jit(policy_gradient, static_argnames=("config", "settings"))


def test_the_step_s_gradient_is_that_of_the_mean_nll(tiny, demonstrated):
  config, params = tiny
  answers, batch = demonstrated
  prompts = batch.rollout.prompts

  def mean_nll(params):
    found = []
    for p, answer in enumerate(answers):
      tokens = np.concatenate([prompts.tokens[p], answer])[None]
      seen = np.concatenate([prompts.mask[p], np.ones(len(answer), bool)])[None]
      table = jax.nn.log_softmax(forward(config, params, tokens, seen)[0, 6:-1])
      found.append(-table[np.arange(len(answer)), np.array(answer)])
    return jnp.concatenate(found).mean()

  wanted, by_hand = jax.jit(jax.value_and_grad(mean_nll))(params)
  for micro in (0, 1, 2):  # in one piece and in several
    settings = dataclasses.replace(SETTINGS, micro_batch_prompts=micro)
    found, metrics = gradient(params, batch, config=config, settings=settings)
    assert float(metrics["loss"]) == pytest.approx(float(wanted), abs=1e-5)
    assert float(metrics["nll"]) == pytest.approx(float(wanted), abs=1e-5)
    assert 0 <= float(metrics["accuracy"]) < 1 and float(metrics["entropy"]) > 0
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), found, by_hand
    )
  assert set(metrics) == {"loss", "nll", "accuracy", "entropy"}


def test_each_demonstration_counts_alike_where_that_is_set(demonstrated):
  _, batch = demonstrated
  by_row = make_batch(
    batch.rollout, np.zeros((4, 1)), None, dataclasses.replace(SETTINGS, aggregation="sequence")
  )
  np.testing.assert_allclose(by_row.token_weights.sum((1, 2)), 0.25)
  np.testing.assert_allclose(batch.token_weights.sum((1, 2)), np.array([1, 5, 2, 6]) / 14)


def test_a_padded_token_may_hold_anything(demonstrated):
  _, batch = demonstrated
  logp = jnp.where(batch.rollout.loss_mask, -1.0, jnp.nan)
  found = losses.nll(logp, logp, batch.advantages, batch.rollout.loss_mask)
  np.testing.assert_array_equal(found, batch.rollout.loss_mask.astype(np.float32))
