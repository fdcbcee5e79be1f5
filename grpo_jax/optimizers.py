"""The optimizers that a run can choose from, all with clipping and a schedule."""

from __future__ import annotations

from typing import Literal

import optax

Optimizer = Literal["adamw", "adafactor"]


def warmup_schedule(learning_rate: float, warmup_steps: int) -> optax.Schedule:
  """From the count of steps done to the learning rate: linear, then constant.

  The first step must move, so the warm-up counts from 1.
  """
  start = 0.0 if warmup_steps else learning_rate
  linear = optax.linear_schedule(start, learning_rate, max(warmup_steps, 1))
  return lambda count: linear(count + 1)


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
