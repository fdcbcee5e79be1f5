"""The optimizers that a run can choose from, all with clipping and a schedule."""

from typing import Any

import jax
import optax

from grpo_jax.config import Decay, OptimizerConfig


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
  config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Builds AdamW, or Adafactor (Shazeer and Stern 2018, arXiv:1804.04235), behind a norm clip.

  AdamW keeps two moments of every parameter. Adafactor keeps the row and column means of the
  squared gradient of a matrix whose sides are both large, the whole square of others, and no first
  moment. It deviates from the paper so that learning rate and weight decay mean what they mean for
  AdamW: steps are not scaled by the parameter's own size, and decay is by learning rate.

  Args:
    config: which, and its numbers.
    schedule: from the count of steps done to the learning rate.
  """
  clip = optax.clip_by_global_norm(config.clip_norm)
  if config.optimizer == "adamw":
    adamw = optax.adamw(
      schedule,
      b1=config.adam_b1,
      b2=config.adam_b2,
      eps=config.adam_epsilon,
      weight_decay=config.weight_decay,
    )
    return optax.chain(clip, adamw)
  return optax.chain(
    clip,
    each_layer(
      optax.scale_by_factored_rms(
        decay_rate=config.adafactor_decay_rate,
        min_dim_size_to_factor=config.adafactor_min_dim_factored,
        epsilon=config.adafactor_epsilon,
      )
    ),
    each_layer(optax.clip_by_block_rms(config.adafactor_clip_rms)),
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_learning_rate(schedule),
  )


def steps_taken(opt_state: Any) -> int:
  """The count that the schedule of `make_optimizer` goes by: a skipped update is not in it."""
  is_count = lambda node: isinstance(node, optax.ScaleByScheduleState)
  (found,) = filter(is_count, jax.tree.leaves(opt_state, is_leaf=is_count))
  return int(found.count)


def each_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """Applies a transformation that works leaf by leaf to each layer's own part of a stacked leaf.

  Its state is stacked likewise: under `layers`, [N, ..] of what one layer's would be.
  """

  def axes(tree: Any) -> Any:
    stacked = lambda path: any(getattr(key, "key", None) == "layers" for key in path)
    return jax.tree_util.tree_map_with_path(lambda path, _: 0 if stacked(path) else None, tree)

  def mapped(function, *trees):
    places = tuple(axes(tree) for tree in trees)
    if all(axis is None for axis in jax.tree.leaves(places, is_leaf=lambda x: x is None)):
      return function(*trees)
    after = axes(jax.eval_shape(function, *trees))
    return jax.vmap(function, in_axes=places, out_axes=after)(*trees)

  return optax.GradientTransformation(
    lambda params: mapped(tx.init, params),
    lambda updates, state, params=None: mapped(tx.update, updates, state, params),
  )
