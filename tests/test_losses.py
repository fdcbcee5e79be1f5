"""Ratio, clip, KL and token weights against numbers worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import grpo, k3_divergence, loss_metrics, token_weights

LN = np.log
OLD = jnp.array([[[-1.0, -2.0, -0.5], [-3.0, -1.0, -1.0]]])  # [P = 1, G = 2, T = 3]
RATIO = jnp.array([[[1.5, 1.0, 0.5], [0.5, 9.0, 9.0]]])
LOGP = OLD + jnp.log(RATIO)
MASK = jnp.array([[[True, True, True], [True, False, False]]])  # the second ends at once
ADVANTAGES = jnp.array([[2.0, -1.0]])


def loss_of(aggregation="sequence", **options):
  per_token = grpo(LOGP, OLD, ADVANTAGES, MASK, **options)
  return float(jnp.sum(token_weights(MASK, aggregation) * per_token))


def test_clipped_loss_is_the_hand_computed_one():
  # A = 2:  min(1.5 * 2, 1.2 * 2) = 2.4;  min(2, 2) = 2;  min(0.5 * 2, 0.8 * 2) = 1.
  #         Their mean is 5.4 / 3 = 1.8.
  # A = -1: min(0.5 * -1, 0.8 * -1) = -0.8, the only token of the second completion.
  found = grpo(LOGP, OLD, ADVANTAGES, MASK)
  np.testing.assert_allclose(found[0, 0], [-2.4, -2.0, -1.0], atol=1e-6)
  assert float(found[0, 1, 0]) == pytest.approx(0.8, abs=1e-6)
  assert loss_of() == pytest.approx(-(1.8 - 0.8) / 2, abs=1e-6)
  assert loss_of("token") == pytest.approx(-(2.4 + 2.0 + 1.0 - 0.8) / 4, abs=1e-6)
  assert loss_of("constant") == pytest.approx(-(2.4 + 2.0 + 1.0 - 0.8) / 6, abs=1e-6)


def test_token_weights_are_the_hand_computed_ones():
  mask = jnp.array([[[1, 1, 0, 1], [0, 0, 0, 0]], [[1, 0, 0, 0], [0, 1, 1, 0]]], bool)
  # Three rows have tokens: of 3, 1 and 2. The empty one counts nowhere.
  third = [[[1 / 9, 1 / 9, 0, 1 / 9], [0] * 4], [[1 / 3, 0, 0, 0], [0, 1 / 6, 1 / 6, 0]]]
  np.testing.assert_allclose(token_weights(mask), third, atol=1e-7)
  np.testing.assert_allclose(token_weights(mask, "token"), mask / 6, atol=1e-7)
  np.testing.assert_allclose(token_weights(mask, "constant"), mask / 16, atol=1e-7)
  longer = token_weights(mask, "constant", max_tokens=10)  # cut to a bucket, it stays the same
  np.testing.assert_allclose(longer, mask / 40, atol=1e-7)
  nothing = jnp.zeros_like(mask)
  for aggregation in ("sequence", "token", "constant"):
    np.testing.assert_array_equal(token_weights(nothing, aggregation), 0.0)


def test_the_two_clips_are_separate():
  # clip_high = 0.6: 1.5 * 2 = 3 stays; mean (3 + 2 + 1) / 3 = 2. The lower clip is as before.
  assert loss_of(clip_high=0.6) == pytest.approx(-(2.0 - 0.8) / 2, abs=1e-6)
  # clip_low = 0.6: 0.5 * -1 = -0.5 stays. The upper clip is as before.
  assert loss_of(clip_low=0.6) == pytest.approx(-(1.8 - 0.5) / 2, abs=1e-6)


def test_gradient_is_that_of_unclipped_tokens_only():
  def total(logp, advantages=ADVANTAGES):
    return jnp.sum(token_weights(MASK) * grpo(logp, OLD, advantages, MASK))

  # d(ratio * A) / d logp = ratio * A, over 2 |o|: 0 where clipped, 2 / 6, 0.5 * 2 / 6.
  np.testing.assert_allclose(
    jax.grad(total)(LOGP), [[[0.0, -2 / 6, -1 / 6], [0.0, 0.0, 0.0]]], atol=1e-6
  )
  # With the signs turned the pessimistic minimum is the unclipped one: 1.5 * -2 / 6 and 0.5 / 2,
  # but 0.5 * -2 is clipped at 0.8 * -2.
  np.testing.assert_allclose(
    jax.grad(total)(LOGP, -ADVANTAGES), [[[0.5, 2 / 6, 0.0], [-0.25, 0.0, 0.0]]], atol=1e-6
  )


@pytest.mark.parametrize(
  ("aggregation", "wanted"),
  [("sequence", [[[-1 / 3] * 3, [0.5, 0.0, 0.0]]]), ("token", [[[-0.5] * 3, [0.25, 0.0, 0.0]]])],
)
def test_on_policy_gradient_is_the_weighted_advantage(aggregation, wanted):
  weights = token_weights(MASK, aggregation)
  slope = jax.grad(lambda logp: jnp.sum(weights * grpo(logp, OLD, ADVANTAGES, MASK)))(OLD)
  np.testing.assert_allclose(slope, wanted, atol=1e-6)


def test_a_token_may_have_an_advantage_of_its_own():
  each = jnp.array([[[2.0, -1.0, 0.0], [-1.0, 5.0, 5.0]]])
  # 1.5 * 2 is clipped to 2.4; 1.0 * -1; nothing; 0.5 * -1 is clipped to -0.8.
  found = jnp.where(MASK, grpo(LOGP, OLD, each, MASK), 0.0)
  np.testing.assert_allclose(found, [[[-2.4, 1.0, 0.0], [0.8, 0.0, 0.0]]], atol=1e-6)
  whole = jnp.broadcast_to(ADVANTAGES[..., None], LOGP.shape)
  np.testing.assert_array_equal(grpo(LOGP, OLD, whole, MASK), grpo(LOGP, OLD, ADVANTAGES, MASK))


def k3(logp, ref_logp):
  row = lambda x: jnp.asarray(x, jnp.float32).reshape(1, 1, -1)
  return k3_divergence(row(logp), row(ref_logp), jnp.ones(row(logp).shape, bool))[0, 0]


def test_k3_is_the_hand_computed_one():
  # pi 0.5, ref 0.25: r = 1/2, r - ln r - 1 = -0.5 + ln 2. pi 0.25, ref 0.5: r = 2, 1 - ln 2.
  found = k3(LN(jnp.array([0.5, 0.25, 0.3])), LN(jnp.array([0.25, 0.5, 0.3])))
  np.testing.assert_allclose(found, [-0.5 + LN(2), 1 - LN(2), 0.0], atol=1e-6)
  assert not np.asarray(k3_divergence(LOGP, OLD, MASK))[~np.asarray(MASK)].any()


def test_k3_is_unbiased_and_never_negative():
  p, q = jnp.array([0.5, 0.25, 0.25]), jnp.array([0.25, 0.25, 0.5])
  # KL(p || q) = 0.5 ln 2 + 0.25 ln 1 + 0.25 ln 0.5 = 0.25 ln 2
  assert float(jnp.sum(p * k3(LN(p), LN(q)))) == pytest.approx(0.25 * LN(2), abs=1e-6)
  pairs = jax.random.normal(jax.random.key(0), (2, 1000))
  assert float(k3(*pairs).min()) >= 0
  # Its on-policy gradient is 1 - r, which pulls pi towards ref; that of log(pi / ref) is 1.
  slope = jax.grad(lambda logp: k3(logp, LN(0.25))[0])(LN(0.5))
  assert float(slope) == pytest.approx(0.5, abs=1e-6)


def test_diagnostics_are_the_hand_computed_ones():
  entropy = jnp.array([[[1.0, 2.0, 3.0], [6.0, 9.0, 9.0]]])
  found = loss_metrics(LOGP, OLD, entropy, ADVANTAGES, MASK, clip_low=0.2, clip_high=0.2)
  # Held back by the clip: 1.5 with A > 0 above, 0.5 with A < 0 below; not 0.5 with A > 0.
  ratio, moved = "sampling/importance_sampling_ratio", "sampling/sampling_logp_difference"
  assert {k: float(v) for k, v in found.items()} == pytest.approx(
    {
      "entropy": 3.0,
      "clip_ratio/low_mean": 1 / 4,
      "clip_ratio/high_mean": 1 / 4,
      "clip_ratio/region_mean": 1 / 2,
      f"{ratio}/min": 0.5,
      f"{ratio}/mean": (1.5 + 1 + 0.5 + 0.5) / 4,
      f"{ratio}/max": 1.5,
      f"{moved}/mean": (LN(1.5) + 2 * LN(2)) / 4,
      f"{moved}/max": LN(2),
    },
    abs=1e-6,
  )


@pytest.mark.parametrize("garbage", [jnp.nan, -jnp.inf, 1e30, -1e30])
@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_what_stands_in_padding_does_not_matter(garbage, aggregation):
  def total(logp, old, ref):
    per_token = grpo(logp, old, ADVANTAGES, MASK) + 0.1 * k3_divergence(logp, ref, MASK)
    return jnp.sum(token_weights(MASK, aggregation) * per_token)

  clean, dirty = (jnp.where(MASK, LOGP, fill) for fill in (0.0, garbage))
  wanted = jax.value_and_grad(total)(clean, OLD, OLD)
  for arguments in ((dirty, OLD, OLD), (dirty, dirty, dirty), (clean, OLD, dirty)):
    value, slope = jax.value_and_grad(total)(*arguments)
    assert np.isfinite(value) and np.isfinite(slope).all()
    np.testing.assert_array_equal(np.asarray(slope)[~np.asarray(MASK)], 0.0)
  np.testing.assert_array_equal(jax.value_and_grad(total)(dirty, OLD, OLD)[1], wanted[1])


def test_senseless_options_are_refused():
  with pytest.raises(ValueError, match=r"'mean'; use one of \('sequence', 'token', 'constant'\)"):
    loss_of("mean")
  with pytest.raises(AssertionError):
    grpo(LOGP, OLD[:, :, :2], ADVANTAGES, MASK)
  with pytest.raises(AssertionError):
    grpo(LOGP, OLD, ADVANTAGES[0], MASK)
