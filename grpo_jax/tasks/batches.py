"""Which tasks a step trains on, and how their prompts become arrays. Pure functions, numpy only."""

from collections.abc import Collection, Sequence

import numpy as np

WINDOW = 16  # steps whose prompts are sorted by length together


def batch_at(
  step: int,
  *,
  num_tasks: int,
  prompts_per_step: int,
  seed: int,
  lengths: Sequence[int] | None = None,
) -> np.ndarray:
  """The task indices of one step: a pure function of (seed, step), so that a run can be resumed.

  Every epoch is a shuffle of its own without replacement; a step that reaches the end of one epoch
  goes on in the next. The order depends on a raw bit stream only, which numpy keeps stable across
  versions, unlike `Generator.permutation`.

  Args:
    step: of training, from 0.
    num_tasks: tasks in the data.
    prompts_per_step: prompts a step, P.
    seed: of the data order.
    lengths: tokens of every task's prompt, where steps are to have prompts of similar lengths: the
      tasks of `WINDOW` steps are sorted by length, cut into steps, and these shuffled.

  Returns:
    int64 [P], each in `[0, num_tasks)`.

  Raises:
    ValueError: a negative step or seed, or a size below 1.
  """
  if step < 0 or seed < 0:
    raise ValueError(f"step and seed must not be negative, got {step} and {seed}")
  if num_tasks < 1 or prompts_per_step < 1:
    raise ValueError(
      f"num_tasks and prompts_per_step must be at least 1, got {num_tasks} and {prompts_per_step}"
    )
  positions = step * prompts_per_step + np.arange(prompts_per_step, dtype=np.int64)
  epochs, offsets = np.divmod(positions, num_tasks)
  indices = np.empty_like(positions)
  for epoch in np.unique(epochs):
    inside = epochs == epoch
    order = _shuffled((seed, int(epoch)), num_tasks)
    if lengths is not None:
      order = _by_length(order, np.asarray(lengths), prompts_per_step, (seed, int(epoch)))
    indices[inside] = order[offsets[inside]]
  return indices


def fresh_order(
  step: int, *, num_tasks: int, seed: int, without: Collection[int] = ()
) -> list[int]:
  """An order of the tasks that a step does not train on: a pure function of (seed, step) as well.

  Args:
    step: of training, from 0.
    num_tasks: tasks in the data.
    seed: of the data order.
    without: the step's own tasks.
  """
  order = _shuffled((seed, step, 1), num_tasks)  # the third number tells it from an epoch's
  own = set(without)
  return [int(i) for i in order if i not in own]


def pad_prompts(
  token_lists: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Stacks prompts into one array, padded on the left so that all of them end together.

  Args:
    token_lists: P prompts of 1 to `length` tokens.
    length: S, tokens.
    pad_id: what fills the padding; the mask, not this id, says what is padding.

  Returns:
    Tokens, int32 [P, S], and the mask, bool [P, S], True where a token is real.

  Raises:
    ValueError: a prompt is empty or longer than `length`.
  """
  tokens_PxS = np.full((len(token_lists), length), pad_id, np.int32)
  mask_PxS = np.zeros((len(token_lists), length), bool)
  for row, token_list in enumerate(token_lists):
    if not 1 <= len(token_list) <= length:
      raise ValueError(f"prompt {row} has {len(token_list)} tokens; expected 1 to {length}")
    tokens_PxS[row, length - len(token_list) :] = token_list
    mask_PxS[row, length - len(token_list) :] = True
  return tokens_PxS, mask_PxS


def bucket_length(n: int, buckets: Sequence[int]) -> int:
  """The smallest bucket that holds `n` tokens: few lengths mean few compiled programs.

  Raises:
    ValueError: `n` is larger than every bucket.
  """
  fitting = [bucket for bucket in buckets if bucket >= n]
  if not fitting:
    raise ValueError(f"{n} tokens fit into none of the buckets {sorted(buckets)}")
  return min(fitting)


def _by_length(
  order: np.ndarray, lengths: np.ndarray, size: int, key: tuple[int, int]
) -> np.ndarray:
  """The order with the tasks of each window sorted by length, and its batches shuffled."""
  windows = []
  for number, start in enumerate(range(0, len(order), WINDOW * size)):
    window = order[start : start + WINDOW * size]
    window = window[np.argsort(lengths[window], kind="stable")]
    batches = np.split(window, range(size, len(window), size))
    windows += [batches[i] for i in _shuffled((*key, 2, number), len(batches))]
  return np.concatenate(windows)


def _shuffled(entropy: tuple[int, ...], count: int) -> np.ndarray:
  bits = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(count)
  return np.argsort(bits, kind="stable")
