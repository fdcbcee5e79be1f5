"""Ratio, clip, KL and aggregation against numbers worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.algorithms import grpo_loss, k3_divergence

LN = np.log
OLD = jnp.array([[[-1.0, -2.0, -0.5], [-3.0, -1.0, -1.0]]])  # [P = 1, G = 2, T = 3]
RATIO = jnp.array([[[1.5, 1.0, 0.5], [0.5, 9.0, 9.0]]])
LOGP = OLD + jnp.log(RATIO)
MASK = jnp.array([[[True, True, True], [True, False, False]]])  # the second ends at once
ADVANTAGES = jnp.array([[2.0, -1.0]])


def loss_of(**options):
  sums = grpo_loss(LOGP, OLD, ADVANTAGES, MASK, **options)
  return float(sums.total), float(sums.count)


def test_clipped_loss_is_the_hand_computed_one():
  # A = 2:  min(1.5 * 2, 1.2 * 2) = 2.4;  min(2, 2) = 2;  min(0.5 * 2, 0.8 * 2) = 1.
  #         Their mean is 5.4 / 3 = 1.8.
  # A = -1: min(0.5 * -1, 0.8 * -1) = -0.8, the only token of the second completion.
  total, count = loss_of()
  assert total == pytest.approx(-(1.8 - 0.8), abs=1e-6) and count == 2
  total, count = loss_of(aggregation="token")
  assert total == pytest.approx(-(2.4 + 2.0 + 1.0 - 0.8), abs=1e-6) and count == 4


def test_the_two_clips_are_separate():
  # clip_high = 0.6: 1.5 * 2 = 3 stays; mean (3 + 2 + 1) / 3 = 2. The lower clip is as before.
  assert loss_of(clip_high=0.6)[0] == pytest.approx(-(2.0 - 0.8), abs=1e-6)
  # clip_low = 0.6: 0.5 * -1 = -0.5 stays. The upper clip is as before.
  assert loss_of(clip_low=0.6)[0] == pytest.approx(-(1.8 - 0.5), abs=1e-6)


def test_gradient_is_that_of_unclipped_tokens_only():
  def total(logp, advantages=ADVANTAGES):
    return grpo_loss(logp, OLD, advantages, MASK).total

  # d(ratio * A) / d logp = ratio * A, over |o|: 0 where clipped, 2 / 3, 0.5 * 2 / 3.
  np.testing.assert_allclose(
    jax.grad(total)(LOGP), [[[0.0, -2 / 3, -1 / 3], [0.0, 0.0, 0.0]]], atol=1e-6
  )
  # With the signs turned the pessimistic minimum is the unclipped one: 1.5 * -2 / 3 and 0.5 * 1,
  # but 0.5 * -2 is clipped at 0.8 * -2.
  np.testing.assert_allclose(
    jax.grad(total)(LOGP, -ADVANTAGES), [[[1.0, 2 / 3, 0.0], [-0.5, 0.0, 0.0]]], atol=1e-6
  )


def test_on_policy_gradient_is_the_advantage_over_the_length():
  slope = jax.grad(lambda logp: grpo_loss(logp, OLD, ADVANTAGES, MASK).total)(OLD)
  np.testing.assert_allclose(slope, [[[-2 / 3] * 3, [1.0, 0.0, 0.0]]], atol=1e-6)
  slope = jax.grad(
    lambda logp: grpo_loss(logp, OLD, ADVANTAGES, MASK, aggregation="token").total
  )(OLD)  # fmt: skip
  np.testing.assert_allclose(slope, [[[-2.0] * 3, [1.0, 0.0, 0.0]]], atol=1e-6)


def test_k3_is_the_hand_computed_one():
  # pi 0.5, ref 0.25: r = 1/2, r - ln r - 1 = -0.5 + ln 2. pi 0.25, ref 0.5: r = 2, 1 - ln 2.
  found = k3_divergence(LN(jnp.array([0.5, 0.25, 0.3])), LN(jnp.array([0.25, 0.5, 0.3])))
  np.testing.assert_allclose(found, [-0.5 + LN(2), 1 - LN(2), 0.0], atol=1e-6)


def test_k3_is_unbiased_and_never_negative():
  p, q = jnp.array([0.5, 0.25, 0.25]), jnp.array([0.25, 0.25, 0.5])
  # KL(p || q) = 0.5 ln 2 + 0.25 ln 1 + 0.25 ln 0.5 = 0.25 ln 2
  assert float(jnp.sum(p * k3_divergence(LN(p), LN(q)))) == pytest.approx(0.25 * LN(2), abs=1e-6)
  pairs = jax.random.normal(jax.random.key(0), (2, 1000))
  assert float(k3_divergence(*pairs).min()) >= 0
  # Its on-policy gradient is 1 - r, which pulls pi towards ref; that of log(pi / ref) is 1.
  slope = jax.grad(lambda logp: k3_divergence(logp, LN(0.25)))(LN(0.5))
  assert float(slope) == pytest.approx(0.5, abs=1e-6)


def test_kl_is_added_per_token_with_its_weight():
  ref = LOGP.at[0, 0, 0].add(LN(2.0)).at[0, 1, 0].add(LN(0.5))
  # Sequence means: (1 - ln 2) / 3 over three tokens, and -0.5 + ln 2 over one.
  divergence = (1 - LN(2)) / 3 + (-0.5 + LN(2))
  total, _ = loss_of(ref_logp=ref, kl_weight=0.1)
  assert total == pytest.approx(-1.0 + 0.1 * divergence, abs=1e-6)
  sums = grpo_loss(LOGP, OLD, ADVANTAGES, MASK, ref_logp=ref).sums  # a diagnostic without weight
  assert float(sums["kl"]) == pytest.approx((1 - LN(2)) + (-0.5 + LN(2)), abs=1e-6)
  assert loss_of(ref_logp=ref)[0] == loss_of()[0]


def test_diagnostics_are_the_hand_computed_ones():
  found = grpo_loss(LOGP, OLD, ADVANTAGES, MASK)
  # Held back by the clip: 1.5 with A > 0 above, 0.5 with A < 0 below; not 0.5 with A > 0.
  wanted = {"tokens": 4, "clip_low": 1, "clip_high": 1, "ratio": 1.5 + 1 + 0.5 + 0.5}
  wanted["logp_difference"] = LN(1.5) + 0 + LN(2) + LN(2)
  assert {k: float(v) for k, v in found.sums.items()} == pytest.approx(wanted, abs=1e-6)
  assert float(found.lows["ratio"]) == pytest.approx(0.5)
  assert float(found.highs["ratio"]) == pytest.approx(1.5)
  assert float(found.highs["logp_difference"]) == pytest.approx(LN(2))


@pytest.mark.parametrize("garbage", [jnp.nan, -jnp.inf, 1e30, -1e30])
@pytest.mark.parametrize("aggregation", ["sequence", "token"])
def test_what_stands_in_padding_does_not_matter(garbage, aggregation):
  def total(logp, old, ref):
    options = {"ref_logp": ref, "kl_weight": 0.1, "aggregation": aggregation}
    return grpo_loss(logp, old, ADVANTAGES, MASK, **options).total

  clean, dirty = (jnp.where(MASK, LOGP, fill) for fill in (0.0, garbage))
  wanted = jax.value_and_grad(total)(clean, OLD, OLD)
  for arguments in ((dirty, OLD, OLD), (dirty, dirty, dirty), (clean, OLD, dirty)):
    value, slope = jax.value_and_grad(total)(*arguments)
    assert np.isfinite(value) and np.isfinite(slope).all()
    np.testing.assert_array_equal(np.asarray(slope)[~np.asarray(MASK)], 0.0)
  np.testing.assert_array_equal(jax.value_and_grad(total)(dirty, OLD, OLD)[1], wanted[1])


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
def test_parts_of_a_batch_add_up_to_the_whole(aggregation):
  keys = jax.random.split(jax.random.key(1), 5)
  shape = (4, 3, 6)
  logp, old, ref = (-jnp.abs(jax.random.normal(key, shape)) for key in keys[:3])
  advantages = jax.random.normal(keys[3], shape[:2])
  mask = jnp.arange(6) < jax.random.randint(keys[4], (*shape[:2], 1), 1, 7)

  def sums(part):
    cut = lambda x: x[part]
    return grpo_loss(
      cut(logp), cut(old), cut(advantages), cut(mask),
      ref_logp=cut(ref), kl_weight=0.1, aggregation=aggregation,
    )  # fmt: skip

  whole, added = sums(slice(None)), sums(slice(0, 1)) + sums(slice(1, 4))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, added)


def test_senseless_options_are_refused():
  with pytest.raises(ValueError, match=r"'mean'; use one of \('sequence', 'token'\)"):
    loss_of(aggregation="mean")
  with pytest.raises(ValueError, match="ref_logp is needed"):
    loss_of(kl_weight=0.1)
  with pytest.raises(AssertionError):
    grpo_loss(LOGP, OLD[:, :, :2], ADVANTAGES, MASK)
