"""Group-relative advantages against numbers worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import group_advantages, share_without_spread


def test_advantages_are_the_hand_computed_ones():
  rewards = jnp.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
  # Group 1: mean 0.5, squared deviations 4 * 0.25, population variance 0.25, std 0.5.
  first = 0.5 / (0.5 + 1e-4)
  # Group 2: mean 0.25, squared deviations 3 * 0.0625 + 0.5625 = 0.75, variance 0.1875.
  below, above = (x / (0.1875**0.5 + 1e-4) for x in (-0.25, 0.75))
  wanted = [[first, -first, -first, first], [below, below, below, above]]
  np.testing.assert_allclose(group_advantages(rewards), wanted, rtol=1e-6)
  assert above == pytest.approx(1.7316509, abs=1e-6)  # with ddof 1 it would be 1.4997


def test_without_the_division_they_are_the_deviations():
  rewards = jnp.array([[1.0, 0.0, 0.5], [0.0, 0.0, 3.0]])
  wanted = [[0.5, -0.5, 0.0], [-1.0, -1.0, 2.0]]
  np.testing.assert_allclose(group_advantages(rewards, scale="none"), wanted, atol=1e-7)


def test_epsilon_is_added_to_the_deviation():
  # mean 0.5, std 0.5: 0.5 / (0.5 + 0.5) = 0.5
  np.testing.assert_allclose(group_advantages(jnp.array([[1, 0]]), epsilon=0.5), [[0.5, -0.5]])


@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_group_of_equal_rewards_gets_exactly_zero(scale):
  noisy = np.float32([0.3, 0.1 + 0.2, 0.3, 0.30000004])  # equal on paper
  rewards = np.stack([np.zeros(4), np.full(4, 0.7), noisy, np.full(4, -1e6)]).astype(np.float32)
  for found in (group_advantages(rewards, scale=scale),
                jax.jit(lambda r: group_advantages(r, scale=scale))(rewards)):  # fmt: skip
    np.testing.assert_array_equal(found, np.zeros((4, 4)))


@pytest.mark.parametrize("size", [2, 3, 5, 6, 7, 8, 16])
@pytest.mark.parametrize("reward", [0.1, 30.1, 98_765.4, -98_765.4, 3.3e7])
def test_equal_rewards_get_exactly_zero_however_large_they_are(reward, size):
  rewards = np.full((3, size), reward, np.float32)
  rewards[1, -1] = np.nextafter(rewards[1, 0], np.float32(np.inf))  # equal on paper
  rewards[2, 0] = np.nextafter(rewards[2, 1], np.float32(np.inf))
  for scale in ("std", "none"):
    advantages = lambda r, scale=scale: group_advantages(r, scale=scale)
    np.testing.assert_array_equal(advantages(rewards), 0.0)
    np.testing.assert_array_equal(jax.jit(advantages)(rewards), 0.0)
  assert float(share_without_spread(rewards)) == 1.0


@pytest.mark.parametrize("scale", ["std", "none"])
def test_advantages_do_not_change_with_what_all_rewards_share(scale):
  # Sums of powers of two, so that the shifted rewards are exact, too.
  rewards = np.float32([[0.0, 0.5, 1.0, 1.0, 0.25, 0.0], [0.5, 0.5, 0.5, 0.5, 0.5, 0.25]])
  wanted = group_advantages(rewards, scale=scale)
  for shared in (64.0, -1024.0, 32_768.0):
    np.testing.assert_array_equal(group_advantages(rewards + shared, scale=scale), wanted)


def test_a_group_does_not_depend_on_the_others():
  rewards = jax.random.uniform(jax.random.key(0), (5, 6))
  alone = jnp.concatenate([group_advantages(row[None]) for row in rewards])
  np.testing.assert_allclose(group_advantages(rewards), alone, atol=1e-6)
  np.testing.assert_allclose(group_advantages(rewards).mean(axis=1), 0.0, atol=1e-6)


def test_share_without_spread_counts_groups():
  rewards = jnp.array([[0.5, 0.5], [0.0, 1.0], [0.1, 0.1], [1.0, 0.9]])
  assert float(share_without_spread(rewards)) == 0.5


def test_an_unknown_scale_is_refused_with_the_valid_ones():
  with pytest.raises(ValueError, match=r"'variance'; use one of \('std', 'none'\)"):
    group_advantages(jnp.zeros((1, 2)), scale="variance")
  with pytest.raises(AssertionError):
    group_advantages(jnp.zeros(4))
