"""The optimizers that a run can choose from, all with clipping and a schedule."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

Optimizer = Literal["adamw", "adafactor"]
Decay = Literal["none", "linear"]


def make_schedule(
  learning_rate: float, warmup_steps: int, decay: Decay = "none", steps: int = 0
) -> optax.Schedule:
  """From the count of optimizer steps done to the learning rate.

  The first step must move and the last one too: the warm-up counts from 1, and the decay would
  reach zero one step after the end.

  Args:
    learning_rate: after the warm-up.
    warmup_steps: linear, in optimizer steps.
    decay: `none`, or `linear` over the steps after the warm-up.
    steps: optimizer steps in all; needed for a decay only.
  """
  start = 0.0 if warmup_steps else learning_rate
  rise = optax.linear_schedule(start, learning_rate, max(warmup_steps, 1))
  if decay == "none":
    return lambda count: rise(count + 1)
  fall = optax.linear_schedule(learning_rate, 0.0, max(steps + 1 - warmup_steps, 1))
  joined = optax.join_schedules([rise, fall], [warmup_steps])
  return lambda count: joined(count + 1)


def make_optimizer(
  name: Optimizer, schedule: optax.Schedule, *, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
  """Builds AdamW, or Adafactor (Shazeer and Stern 2018, arXiv:1804.04235), behind a norm clip.

  AdamW keeps two moments of every parameter. Adafactor keeps the row and column means of the
  squared gradient of a matrix whose sides are both at least 128, the whole square of others, and
  no first moment. It deviates from the paper so that learning rate and weight decay mean what they
  mean for AdamW: steps are not scaled by the parameter's own size, and decay is by learning rate.

  Args:
    name: which.
    schedule: from the count of steps done to the learning rate.
    weight_decay: decoupled, times the learning rate.
    clip_norm: gradients are scaled down to this global norm.
  """
  clip = optax.clip_by_global_norm(clip_norm)
  if name == "adamw":
    return optax.chain(clip, optax.adamw(schedule, b2=0.99, weight_decay=weight_decay))
  return optax.chain(
    clip,
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(1.0),
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(schedule),
  )


def steps_taken(opt_state: Any) -> int:
  """The count that the schedule of `make_optimizer` goes by: a skipped update is not in it."""
  is_count = lambda node: isinstance(node, optax.ScaleByScheduleState)
  (found,) = filter(is_count, jax.tree.leaves(opt_state, is_leaf=is_count))
  return int(found.count)
