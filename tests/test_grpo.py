"""The step: gradients, micro-batches, inner updates and the corner cases of a group."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.grpo import (
  GRPOConfig,
  grpo_step,
  kl_to_reference,
  make_batch,
  policy_gradient,
  reference_logprobs,
  step_key,
  update,
)
from grpo_jax.losses import group_advantages, token_weights
from grpo_jax.models import completion_logprobs, forward
from grpo_jax.sampling import SamplingConfig, sample_groups
from grpo_jax.types import GRPOBatch, Prompts, Rollout, TrainState

SAMPLING = SamplingConfig(group_size=4, max_tokens=6, stop_ids=tuple(range(0, 67, 4)), pad_id=1)
BASE = GRPOConfig(sampling=SAMPLING)
TX = optax.sgd(0.5)
# Compiled: run operation by operation, the same tests take ten times as long.
gradient = jax.jit(policy_gradient, static_argnames=("config", "settings"))
learn = jax.jit(update, static_argnames=("config", "tx", "settings"))
sample = jax.jit(sample_groups, static_argnums=(0, 4))
score = jax.jit(completion_logprobs, static_argnums=0)
reference_of = jax.jit(reference_logprobs, static_argnames=("config", "settings"))


@pytest.fixture(scope="module")
def shallow(tiny):
  """The first layer of the tiny decoder: depth is the decoder's business, and costs compilation."""
  config, params = tiny
  first = jax.tree.map(lambda x: x[:1], params["layers"])
  return dataclasses.replace(config, num_layers=1), params | {"layers": first}


def prompts():
  rng = np.random.default_rng(0)
  mask = np.arange(7) >= 7 - np.array([3, 7, 5, 1])[:, None]
  return Prompts(rng.integers(0, 67, (4, 7)).astype(np.int32), mask, np.arange(4))


def even_share(rollout: Rollout) -> jax.Array:
  """A reward of jnp operations: the share of a completion's tokens that are even."""
  even = rollout.completion_mask & (rollout.tokens % 2 == 0)
  return even.sum(-1) / rollout.completion_mask.sum(-1)


def start(params, tx=TX) -> TrainState:
  return TrainState(params, tx.init(params), jnp.int32(3), jax.random.key(1))


def weighed(batch: GRPOBatch, settings: GRPOConfig) -> GRPOBatch:
  """The batch with the token weights that `settings` gives it."""
  teach = make_batch(batch.rollout, jnp.zeros((4, 4)), batch.rollout.logp, settings)
  return batch.replace(token_weights=teach.token_weights)


def assert_trees_close(found, wanted, relative):
  def check(path, a, b):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, atol=relative * scale + 1e-12, rtol=0, err_msg=str(path))

  jax.tree_util.tree_map_with_path(check, found, wanted)


@pytest.fixture(scope="module")
def rollout(shallow):
  rollout = jax.tree.map(np.asarray, sample(*shallow, prompts(), jax.random.key(0), SAMPLING))
  lengths = rollout.loss_mask.sum(-1)
  assert lengths.min() == 1 and lengths.max() == 6  # first-token stops and cut ones are in it
  return rollout


@pytest.fixture(scope="module")
def off_policy(shallow, rollout):
  """A batch whose ratios lie on both sides of the clip, and a reference of its own."""
  noise = np.random.default_rng(1).normal(size=(2, *rollout.logp.shape)).astype(np.float32)
  old = rollout.replace(logp=rollout.logp + 0.3 * noise[0])
  advantages = group_advantages(even_share(rollout))
  return GRPOBatch(old, advantages, token_weights(rollout.loss_mask), rollout.logp + 0.3 * noise[1])


def test_gradient_equals_the_repeated_layout_written_out(shallow, rollout):
  config, params = shallow
  batch = make_batch(rollout, even_share(rollout), None, BASE)
  found, metrics = gradient(params, batch, config=config, settings=BASE)
  tokens = np.concatenate(
    [np.repeat(rollout.prompts.tokens, 4, 0), rollout.tokens.reshape(16, 6)], 1
  )
  seen = np.concatenate([np.repeat(rollout.prompts.mask, 4, 0), np.ones((16, 6), bool)], axis=1)
  kept = rollout.loss_mask.reshape(16, 6)

  def by_hand(params):
    # On-policy, the gradient of eq. 3 is that of -mean_i A_i * mean_t log pi(o_t).
    table = jax.nn.log_softmax(forward(config, params, tokens, seen)[:, 6:-1])
    logp = jnp.take_along_axis(table, tokens[:, 7:, None], axis=-1)[..., 0]
    means = jnp.sum(jnp.where(kept, logp, 0), axis=1) / kept.sum(1)
    return -jnp.mean(batch.advantages.reshape(16) * means)

  assert_trees_close(found, jax.jit(jax.grad(by_hand))(params), 1e-4)
  assert float(metrics["loss"]) == pytest.approx(-float(batch.advantages.mean()), abs=1e-6)


@pytest.mark.parametrize(
  ("aggregation", "changes"),
  [
    ("sequence", {"micro_batch_prompts": 1, "remat": "layers"}),
    ("token", {"micro_batch_prompts": 2}),
    ("constant", {"micro_batch_prompts": 1}),
  ],
)
def test_micro_batches_and_rematerialisation_change_nothing(
  shallow, off_policy, aggregation, changes
):
  config, params = shallow
  settings = dataclasses.replace(BASE, kl_weight=0.1, aggregation=aggregation)
  off_policy = weighed(off_policy, settings)
  wanted, metrics = gradient(params, off_policy, config=config, settings=settings)
  assert float(metrics["clip_ratio/low_mean"]) > 0 and float(metrics["clip_ratio/high_mean"]) > 0
  cut = dataclasses.replace(settings, **changes)
  found, other = gradient(params, off_policy, config=config, settings=cut)
  assert_trees_close(found, wanted, 1e-5)
  assert other.keys() == metrics.keys()
  for name in metrics:
    assert float(other[name]) == pytest.approx(float(metrics[name]), abs=1e-5), name


def test_metrics_on_policy_are_those_of_no_change(shallow, rollout):
  config, params = shallow
  batch = make_batch(rollout, even_share(rollout), None, BASE)
  metrics = {
    k: float(v) for k, v in gradient(params, batch, config=config, settings=BASE)[1].items()
  }
  for name in ("min", "mean", "max"):
    assert metrics[f"sampling/importance_sampling_ratio/{name}"] == pytest.approx(1, abs=1e-5)
  assert 0 <= metrics["sampling/sampling_logp_difference/mean"] <= 1e-5
  assert metrics["sampling/sampling_logp_difference/max"] <= 1e-5
  assert metrics["clip_ratio/region_mean"] == 0 and "kl" not in metrics
  scores = score(config, params, rollout.prompts.tokens, rollout.prompts.mask, rollout.tokens)
  assert metrics["entropy"] == pytest.approx(
    float(scores.entropy[rollout.loss_mask].mean()), abs=1e-5
  )


def test_the_loss_sees_the_policy_that_sampled_whatever_the_temperature(shallow):
  config, params = shallow
  settings = dataclasses.replace(BASE, sampling=dataclasses.replace(SAMPLING, temperature=0.5))
  cold = jax.tree.map(np.asarray, sample(*shallow, prompts(), jax.random.key(0), settings.sampling))
  batch = make_batch(cold, even_share(cold), None, settings)
  _, metrics = gradient(params, batch, config=config, settings=settings)
  assert float(metrics["sampling/sampling_logp_difference/max"]) <= 1e-5
  _, plain = gradient(
    params, batch, config=config, settings=BASE
  )  # another temperature, other ratios
  assert float(plain["sampling/sampling_logp_difference/max"]) > 1e-2


def test_a_stop_token_that_comes_first_is_learned(shallow):
  config, params = shallow
  one = Prompts(np.array([[5, 6, 7]], np.int32), np.ones((1, 3), bool), np.arange(1))
  mask = np.array([[[True, False, False], [True, True, True]]])

  def batch(padding):
    tokens = np.array([[[0, padding, padding], [9, 10, 0]]], np.int32)
    logp = score(config, params, one.tokens, one.mask, tokens).logp
    logp = jnp.where(mask, logp, 0)
    rollout = Rollout(one, tokens, mask, mask, logp, logp)
    return GRPOBatch(rollout, jnp.array([[1.0, -1.0]]), token_weights(mask))

  after, metrics = learn(start(params), batch(1), config=config, tx=TX, settings=BASE)
  assert all(np.isfinite(float(x)) for x in metrics.values())
  tokens = batch(1).rollout.tokens
  before, now = (
    score(config, p, one.tokens, one.mask, tokens).logp for p in (params, after.params)
  )
  assert float(now[0, 0, 0]) > float(before[0, 0, 0]) + 0.05  # the lone stop token was rewarded
  assert float(now[0, 1].sum()) < float(before[0, 1].sum())
  # It is the whole completion: what stands behind it has no part in anything.
  other, _ = learn(start(params), batch(66), config=config, tx=TX, settings=BASE)
  assert_trees_close(other.params, after.params, 1e-6)


def test_equal_rewards_change_nothing(shallow, rollout):
  config, params = shallow
  rewards = jnp.broadcast_to(jnp.array([0.0, 0.7, 1.0, 0.1 + 0.2])[:, None], (4, 4))
  for scale in ("none", "std"):
    settings = dataclasses.replace(BASE, advantage=scale)
    batch = make_batch(rollout, rewards, None, settings)
    np.testing.assert_array_equal(batch.advantages, 0.0)
  after, metrics = learn(start(params), batch, config=config, tx=TX, settings=settings)
  assert float(metrics["grad_norm"]) == 0 and float(metrics["loss"]) == 0
  assert all(np.isfinite(float(x)) for x in metrics.values())
  jax.tree.map(np.testing.assert_array_equal, after.params, params)


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
def test_groups_without_spread_are_left_out_and_nothing_changes(shallow, off_policy, aggregation):
  config, params = shallow
  idle = off_policy.replace(
    advantages=off_policy.advantages * jnp.array([0.0, 1.0, 0.0, 1.0])[:, None], ref_logp=None
  )
  settings = dataclasses.replace(BASE, aggregation=aggregation)
  idle = weighed(idle, settings)
  wanted, whole = gradient(params, idle, config=config, settings=settings)
  cut = dataclasses.replace(settings, micro_batch_prompts=1, skip_idle=True)
  found, metrics = gradient(params, idle, config=config, settings=cut)
  assert_trees_close(found, wanted, 1e-5)
  assert float(metrics["loss"]) == pytest.approx(float(whole["loss"]), abs=1e-6)
  # That they were left out shows in the diagnostics, which are those of the other two groups.
  two = jax.tree.map(lambda x: x[1::2], idle)
  assert float(metrics["entropy"]) == pytest.approx(
    float(gradient(params, two, config=config, settings=settings)[1]["entropy"]), abs=1e-6
  )
  assert abs(float(metrics["entropy"]) - float(whole["entropy"])) > 1e-4


def test_rows_without_a_loss_token_change_nothing(shallow, off_policy):
  """However the batch is cut: their weights are zero, and they count in no denominator."""
  config, params = shallow
  trained = off_policy.rollout.loss_mask.copy()
  trained[1, 2] = trained[3] = False
  trained[0, 1, 0] = False  # a token in the middle, as a tool's result would be
  rollout = off_policy.rollout.replace(loss_mask=trained)
  kept = [p * 4 + g for p in range(4) for g in range(4) if trained[p, g].any()]

  def by_hand(params, settings):
    one = off_policy.rollout
    logp = score(config, params, one.prompts.tokens, one.prompts.mask, one.tokens).logp
    difference = jnp.where(trained, logp - one.logp, 0).reshape(16, 6)
    ratio, mask = jnp.exp(difference), trained.reshape(16, 6)
    advantage = off_policy.advantages.reshape(16, 1)
    loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage) * mask
    if settings.aggregation == "token":
      return loss.sum() / mask.sum()
    return sum(loss[i].sum() / mask[i].sum() for i in kept) / len(kept)

  for aggregation in ("sequence", "token"):
    settings = dataclasses.replace(BASE, aggregation=aggregation)
    wanted = jax.grad(by_hand)(params, settings)
    for micro in (0, 1, 2):
      cut = dataclasses.replace(settings, micro_batch_prompts=micro)
      batch = weighed(off_policy.replace(rollout=rollout, ref_logp=None), cut)
      found, metrics = gradient(params, batch, config=config, settings=cut)
      assert_trees_close(found, wanted, 1e-5)
      assert float(metrics["loss"]) == pytest.approx(float(by_hand(params, settings)), abs=1e-6)


def test_advantages_of_tokens_are_those_of_their_sequence(shallow, off_policy):
  config, params = shallow
  per_token = jnp.broadcast_to(off_policy.advantages[..., None], off_policy.rollout.logp.shape)
  settings = dataclasses.replace(BASE, micro_batch_prompts=1)
  for skip_idle in (False, True):
    settings = dataclasses.replace(settings, skip_idle=skip_idle)
    one = off_policy.replace(ref_logp=None)
    wanted, metrics = gradient(params, one, config=config, settings=settings)
    found, other = gradient(
      params, one.replace(advantages=per_token), config=config, settings=settings
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert {k: float(v) for k, v in other.items()} == {k: float(v) for k, v in metrics.items()}


def test_kl_to_the_reference_is_the_mean_over_the_sampled_tokens(shallow, rollout):
  config, params = shallow
  moved = jax.tree.map(lambda x: 1.1 * x, params)
  ref = score(config, moved, rollout.prompts.tokens, rollout.prompts.mask, rollout.tokens).logp
  difference = np.asarray(ref)[rollout.loss_mask] - rollout.logp[rollout.loss_mask]
  wanted = np.mean(np.exp(difference) - difference - 1)
  assert wanted > 1e-4
  found = kl_to_reference(rollout, ref)
  assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_minibatches_and_inner_updates_are_steps_one_after_another(shallow, off_policy):
  config, params = shallow
  tx = optax.chain(optax.trace(0.9), optax.scale_by_schedule(lambda count: -0.2 / (1 + count)))
  settings = dataclasses.replace(BASE, inner_updates=2, minibatches=2)
  off_policy = weighed(off_policy, settings)
  found, metrics = learn(start(params, tx), off_policy, config=config, tx=tx, settings=settings)
  state, steps = start(params, tx), []
  halves = [jax.tree.map(lambda x: x[:2], off_policy), jax.tree.map(lambda x: x[2:], off_policy)]
  for half in halves:  # the weights are those of an optimizer step, not of the whole batch
    np.testing.assert_allclose(half.token_weights, token_weights(half.rollout.loss_mask))
  for half in halves * 2:  # pi_old stays what it was
    state, one = learn(state, half, config=config, tx=tx, settings=BASE)
    steps.append(one)
  assert_trees_close(found.params, state.params, 1e-5)
  reductions = {
    "sampling/importance_sampling_ratio/min": min,
    "sampling/importance_sampling_ratio/max": max,
    "sampling/sampling_logp_difference/max": max,
  }
  for name, value in metrics.items():
    values = [float(one[name]) for one in steps]
    assert float(value) == pytest.approx(reductions.get(name, np.mean)(values), rel=1e-3), name
  assert int(found.step) == 4 and int(found.opt_state[1].count) == 4


def test_a_second_pass_sees_the_policy_that_the_first_left(shallow, rollout):
  config, params = shallow
  settings = dataclasses.replace(BASE, inner_updates=3)
  batch = make_batch(rollout, even_share(rollout), None, settings)
  _, metrics = learn(start(params), batch, config=config, tx=TX, settings=settings)
  assert float(metrics["sampling/importance_sampling_ratio/max"]) > 1.05
  assert float(metrics["sampling/importance_sampling_ratio/min"]) < 0.95


def test_reference_log_probs_are_the_references(shallow, rollout):
  config, params = shallow
  reference = jax.tree.map(lambda x: 0.9 * x, params)
  prompts_, rewards = rollout.prompts, even_share(rollout)
  wanted = score(config, reference, prompts_.tokens, prompts_.mask, rollout.tokens).logp
  for micro in (0, 2):
    settings = dataclasses.replace(BASE, kl_weight=0.1, micro_batch_prompts=micro)
    ref_logp = reference_of(reference, rollout, config=config, settings=settings)
    batch = make_batch(rollout, rewards, ref_logp, settings)
    np.testing.assert_allclose(batch.ref_logp, wanted, atol=1e-5)
  metrics = gradient(params, batch, config=config, settings=settings)[1]
  difference = (np.asarray(wanted) - rollout.logp)[rollout.loss_mask]
  k3 = np.exp(difference) - difference - 1
  assert float(metrics["kl"]) == pytest.approx(k3.mean(), rel=1e-3) and k3.mean() > 0.01
  with pytest.raises(ValueError, match="a reference policy is needed"):
    make_batch(rollout, rewards, None, settings)
  assert make_batch(rollout, rewards, ref_logp, BASE).ref_logp is None


def test_the_whole_step_under_one_jit_equals_its_two_halves(shallow):
  config, params = shallow
  settings = dataclasses.replace(BASE, kl_weight=0.1, micro_batch_prompts=2)
  reference = jax.tree.map(lambda x: 0.9 * x, params)
  state = start(params)
  how = {"config": config, "settings": settings}

  @jax.jit
  def step(state, reference, prompts):
    def collect(state, prompts):
      rollout = sample_groups(config, state.params, prompts, step_key(state), SAMPLING)
      return rollout, even_share(rollout)

    return grpo_step(
      state,
      prompts,
      collect=collect,
      update=functools.partial(update, tx=TX, **how),
      reference=lambda rollout: reference_logprobs(reference, rollout, **how),
      settings=settings,
    )

  whole, metrics, drawn, rewards = step(state, reference, prompts())

  rollout = sample(config, params, prompts(), step_key(state), SAMPLING)
  np.testing.assert_array_equal(drawn.tokens, rollout.tokens)
  np.testing.assert_array_equal(rewards, even_share(rollout))
  ref_logp = reference_of(reference, rollout, **how)
  batch = make_batch(rollout, even_share(rollout), ref_logp, settings)
  halves, wanted = learn(state, batch, config=config, tx=TX, settings=settings)
  assert_trees_close(whole.params, halves.params, 1e-5)
  assert metrics.keys() == wanted.keys()
  assert (int(whole.step), whole.key) == (4, state.key)
  # The next step's samples have a key of their own.
  assert step_key(whole) != step_key(state)


def test_the_reward_rises(shallow):
  config, params = shallow
  tx = optax.adam(0.01)
  sampling = SamplingConfig(group_size=8, max_tokens=6)
  settings = GRPOConfig(sampling=sampling)
  state, rewards = start(params, tx), []

  @jax.jit
  def step(state):
    def collect(state, prompts):
      rollout = sample_groups(config, state.params, prompts, step_key(state), sampling)
      return rollout, even_share(rollout)

    learn = functools.partial(update, config=config, tx=tx, settings=settings)
    state, _, _, rewards = grpo_step(
      state, prompts(), collect=collect, update=learn, settings=settings
    )
    return state, rewards.mean()

  for _ in range(25):
    state, reward = step(state)
    rewards.append(float(reward))
  assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.25


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"sampling": SamplingConfig(group_size=1)}, "--group_size=1 must be at least 2"),
    ({"clip_low": 1.0}, "--clip_low=1.0 must be above 0 and below 1"),
    ({"clip_high": 0.0}, "--clip_high=0.0 must be above 0"),
    ({"kl_weight": -0.1}, "--kl_weight=-0.1 must be at least 0"),
    ({"kl_weight": 0.1, "skip_idle": True}, "skip_idle needs a kl_weight of 0"),
    ({"inner_updates": 0}, "--inner_updates=0 must be at least 1"),
    ({"minibatches": 0}, "--minibatches=0 must be at least 1"),
    ({"micro_batch_prompts": -1}, "--micro_batch_prompts=-1 must be at least 0"),
  ],
)
def test_settings_out_of_range_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    GRPOConfig(**wrong)


@pytest.mark.parametrize(
  "wrong", [{"minibatches": 3}, {"micro_batch_prompts": 3}, {"micro_batch_prompts": 8}]
)
def test_parts_that_do_not_divide_the_prompts_are_refused(shallow, off_policy, wrong):
  config, params = shallow
  settings = dataclasses.replace(BASE, **wrong)
  with pytest.raises(ValueError, match="4 prompts cannot be cut"):
    update(start(params), off_policy, config=config, tx=TX, settings=settings)
