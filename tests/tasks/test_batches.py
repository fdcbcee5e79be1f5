from __future__ import annotations

import numpy as np
import pytest

from grpo_jax.tasks.batches import batch_at, bucket_length, pad_prompts


def test_each_epoch_visits_every_task_once_in_an_order_of_its_own():
  epochs = np.concatenate(
    [batch_at(step, num_tasks=12, prompts_per_step=4, seed=5) for step in range(6)]
  ).reshape(2, 12)
  for epoch in epochs:
    assert sorted(epoch) == list(range(12))
  assert list(epochs[0]) != list(epochs[1])
  assert list(epochs[0]) != list(range(12))


def test_a_batch_that_crosses_an_epoch_repeats_nothing_within_either():
  stream = np.concatenate(
    [batch_at(step, num_tasks=7, prompts_per_step=5, seed=0) for step in range(7)]
  )
  for epoch in stream.reshape(5, 7):
    assert sorted(epoch) == list(range(7))
  assert sorted(batch_at(0, num_tasks=3, prompts_per_step=6, seed=0)) == [0, 0, 1, 1, 2, 2]


def test_a_batch_depends_on_seed_and_step_alone():
  later = batch_at(1000, num_tasks=50, prompts_per_step=8, seed=1)
  for step in range(5):
    batch_at(step, num_tasks=50, prompts_per_step=8, seed=1)
  np.testing.assert_array_equal(later, batch_at(1000, num_tasks=50, prompts_per_step=8, seed=1))
  assert list(later) != list(batch_at(1000, num_tasks=50, prompts_per_step=8, seed=2))
  assert list(later) != list(batch_at(1001, num_tasks=50, prompts_per_step=8, seed=1))


def test_the_order_is_the_one_that_published_runs_used():
  # Reproducing a run needs this order on every numpy version; do not update the numbers lightly.
  assert batch_at(3, num_tasks=1500, prompts_per_step=6, seed=0).tolist() == [
    344,
    818,
    0,
    474,
    630,
    450,
  ]


def test_senseless_batches_are_refused():
  for wrong in ({"step": -1}, {"seed": -1}, {"num_tasks": 0}, {"prompts_per_step": 0}):
    arguments = {"step": 0, "num_tasks": 4, "prompts_per_step": 2, "seed": 0, **wrong}
    with pytest.raises(ValueError, match=r"must (not be negative|be at least 1)"):
      batch_at(arguments.pop("step"), **arguments)


def test_prompts_are_padded_on_the_left_and_masked_even_where_they_hold_the_pad_token():
  tokens, mask = pad_prompts([[5, 0, 6], [7]], 4, pad_id=0)
  np.testing.assert_array_equal(tokens, [[0, 5, 0, 6], [0, 0, 0, 7]])
  np.testing.assert_array_equal(mask, [[False, True, True, True], [False, False, False, True]])
  assert tokens.dtype == np.int32 and mask.dtype == bool


def test_prompts_that_do_not_fit_are_refused():
  for lists in ([[1, 2, 3]], [[]]):
    with pytest.raises(ValueError, match="expected 1 to 2"):
      pad_prompts(lists, 2, pad_id=0)


def test_bucket_is_the_smallest_that_holds_the_length():
  assert [bucket_length(n, (64, 16, 32)) for n in (1, 16, 17, 64)] == [16, 16, 32, 64]
  with pytest.raises(ValueError, match=r"65 tokens fit into none of the buckets \[16, 64\]"):
    bucket_length(65, (64, 16))


def test_steps_of_similar_lengths_hold_every_task_once_and_pad_less():
  lengths = np.random.default_rng(0).integers(100, 600, 640).tolist()
  options = dict(num_tasks=640, prompts_per_step=8, seed=3)
  plain = [batch_at(step, **options) for step in range(80)]
  grouped = [batch_at(step, lengths=lengths, **options) for step in range(80)]
  assert sorted(np.concatenate(grouped).tolist()) == list(range(640))
  padded = lambda batches: sum(8 * max(lengths[i] for i in batch) for batch in batches)
  assert padded(grouped) < 1.15 * sum(lengths) < 1.4 * sum(lengths) < padded(plain)
  # The longest steps come at any time, and another epoch has other steps.
  longest = [max(lengths[i] for i in batch) for batch in grouped]
  assert longest != sorted(longest) and longest[::-1] != sorted(longest)
  again = [batch_at(step, lengths=lengths, **options) for step in range(80, 160)]
  assert {tuple(sorted(batch)) for batch in again} != {tuple(sorted(batch)) for batch in grouped}
