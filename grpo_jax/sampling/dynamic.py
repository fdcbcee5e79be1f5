"""Dynamic sampling: fresh prompts in place of those whose group teaches nothing.

DAPO (arXiv:2503.14476), section 3.2, samples until the batch is full of groups with two different
rewards. Here the rounds are capped, and what is idle after them stays, for the batch keeps its
shape.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import numpy as np

from grpo_jax.losses import has_spread
from grpo_jax.runs.rollouts import Groups, Resampled, ScoredRollout
from grpo_jax.sampling.decoding import halves
from grpo_jax.tasks.batches import bucket_length
from grpo_jax.types import Rollout


def replace_idle(
  groups: Groups,
  fresh: Sequence[int],
  draw: Callable[[Sequence[int], int], Groups],
  *,
  rounds: int,
  parts: int = 1,
) -> tuple[Groups, Resampled]:
  """Replaces groups without spread by those of fresh tasks that have one.

  Args:
    groups: the step's own P.
    fresh: the numbers of tasks that may take their place, in order.
    draw: from such numbers, and the place of the first among all that the step samples, to groups.
    rounds: how often at most.
    parts: a round samples a multiple of this: into so many the mesh splits the prompts.

  Returns:
    P groups, those that stay at their places, and what is to be recorded.
  """
  sizes = [size for size in halves(len(groups.tasks)) if size % parts == 0]  # few to compile for
  every, kept, at = groups, np.arange(len(groups.tasks)), [0] * len(groups.tasks)
  left = list(fresh)
  for number in range(1, rounds + 1):
    useful = np.asarray(has_spread(every.scored.rewards))
    idle = kept[~useful[kept]]
    possible = [size for size in sizes if size <= len(left)]
    if not idle.size or not possible:
      break
    count = min(bucket_length(len(idle), sizes), max(possible))
    chosen, left = left[:count], left[count:]
    more = draw(chosen, len(every.tasks))
    new = len(every.tasks) + np.flatnonzero(has_spread(more.scored.rewards))
    places = np.flatnonzero(~useful[kept])[: len(new)]
    kept[places] = new[: len(places)]
    every, at = _joined(every, more), at + [number] * count
  rewards, lengths = every.scored.rewards, every.drawn.completion_mask.sum(-1)
  metrics = {
    "dynamic/rounds": at[-1],
    "dynamic/discarded": len(every.tasks) - len(kept),
    "dynamic/without_spread": int(np.sum(~np.asarray(has_spread(rewards)))),
    "dynamic/reward": float(rewards.mean()),
    "tokens": int(lengths.sum()),  # that were sampled, not only those that are trained on
  }
  return _taken(every, kept), Resampled(np.asarray(at)[kept], metrics)


def _joined(one: Groups, two: Groups) -> Groups:
  """The groups of both, prompts padded on the left to one length."""
  length = max(groups.drawn.prompts.tokens.shape[1] for groups in (one, two))
  drawn = jax.tree.map(
    lambda a, b: np.concatenate([a, b]), *(_widened(g.drawn, length) for g in (one, two))
  )
  a, b = one.scored, two.scored
  scored = ScoredRollout(
    [*a.texts, *b.texts],
    [*a.breakdowns, *b.breakdowns],
    np.concatenate([a.rewards, b.rewards]),
    Counter(a.failures) + Counter(b.failures),
    a.first_failure or b.first_failure,
  )
  return Groups([*one.tasks, *two.tasks], drawn, scored)


def _widened(rollout: Rollout, length: int) -> Rollout:
  prompts = rollout.prompts
  add = [(0, 0), (length - prompts.tokens.shape[1], 0)]
  wide = {name: np.pad(getattr(prompts, name), add) for name in ("tokens", "mask")}
  return dataclasses.replace(rollout, prompts=dataclasses.replace(prompts, **wide))


def _taken(groups: Groups, rows: np.ndarray) -> Groups:
  """Some of the groups, in this order; failures are still those of all."""
  tasks, drawn, scored = groups
  size = scored.rewards.shape[1]
  flat = (rows[:, None] * size + np.arange(size)).ravel()
  return Groups(
    [tasks[row] for row in rows],
    jax.tree.map(lambda x: x[rows], drawn),
    dataclasses.replace(
      scored,
      texts=[scored.texts[i] for i in flat],
      breakdowns=[scored.breakdowns[i] for i in flat],
      rewards=scored.rewards[rows],
    ),
  )
