"""What was saved comes back, bit for bit, and half-written checkpoints do not count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.types import TrainState

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda count: 0.1))


def state_at(step: int, seed: int = 0) -> TrainState:
  params = {"embed": {"embedding": jax.random.normal(jax.random.key(seed), (5, 3))}}
  grads = jax.tree.map(jnp.sin, params)
  _, opt_state = TX.update(grads, TX.init(params), params)
  return TrainState(params, opt_state, jnp.int32(step), jax.random.key(seed + 10))


def assert_same(found: TrainState, wanted: TrainState):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  assert jnp.issubdtype(found.key.dtype, jax.dtypes.prng_key) and found.key == wanted.key
  numbers = lambda state: jax.tree.leaves((state.params, state.opt_state, state.step))
  for a, b in zip(numbers(found), numbers(wanted), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_a_state_comes_back_as_it_was(tmp_path):
  state = state_at(7)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.newest_good() is None
    checkpoints.save(state, {"num_tokens": 123, "note": "ä"})
  with Checkpoints(tmp_path) as again:  # leaving the first waited for the write
    assert again.newest_good() == 7
    found, meta = again.restore(7, state_at(0, seed=1))
  assert meta == {"num_tokens": 123, "note": "ä"}
  assert_same(found, state)


def test_a_state_may_be_donated_right_after_it_was_saved(tmp_path):
  numbers = lambda state: jax.tree.leaves((state.params, state.opt_state, state.step))
  kept = jax.device_get(numbers(state_at(3)))
  state = state_at(3)
  clobber = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, {})
    for _ in range(5):
      jax.block_until_ready(clobber(state.params) if not _deleted(state.params) else 0)
    checkpoints.wait()
    found, _ = checkpoints.restore(3, state_at(0))
  for a, b in zip(numbers(found), kept, strict=True):
    np.testing.assert_array_equal(a, b)


def _deleted(tree) -> bool:
  return any(leaf.is_deleted() for leaf in jax.tree.leaves(tree))


def test_the_newest_are_kept(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (2, 4, 6):
      checkpoints.save(state_at(step, seed=step), {})
    checkpoints.save(state_at(6, seed=99), {})  # this step is there already
    checkpoints.wait()
    assert checkpoints.newest_good() == 6
    assert_same(checkpoints.restore(6, state_at(0))[0], state_at(6, seed=6))
    assert_same(checkpoints.restore(4, state_at(0))[0], state_at(4, seed=4))
  kept = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
  assert kept == {"4", "6"}


def test_a_half_written_checkpoint_does_not_count(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state_at(2), {})
  # What a killed process leaves: orbax writes into a folder of this name and renames it at the end.
  torn = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
  (torn / "state").mkdir(parents=True)
  (torn / "state" / "array").write_bytes(b"half")
  with Checkpoints(tmp_path) as again:
    assert again.newest_good() == 2
    assert_same(again.restore(2, state_at(0))[0], state_at(2))
    again.save(state_at(4), {})
    again.wait()
    assert again.newest_good() == 4


def test_a_checkpoint_of_other_shapes_is_an_error_not_a_guess(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state_at(2), {})
    checkpoints.wait()
    like = state_at(0)
    for params in ({"embed": {"embedding": jnp.zeros((5, 4))}}, {"other": jnp.zeros((5, 3))}):
      with pytest.raises(ValueError):
        checkpoints.restore(2, like.replace(params=params))


def test_the_best_by_evaluation_is_kept_beside_the_newest(tmp_path):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    for step, eval_reward in ((1, 0.3), (2, 0.9), (3, None), (4, 0.5), (5, None)):
      checkpoints.save(state_at(step), {}, eval_reward)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5]


def test_the_best_is_still_known_in_the_next_process(tmp_path):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(state_at(2), {}, 0.9)
  with Checkpoints(tmp_path, keep=1) as resumed:
    assert resumed.newest_good() == 2
    resumed.save(state_at(5), {}, 0.4)
    resumed.save(state_at(7), {})
    resumed.wait()
    assert resumed.steps() == [2, 7]
