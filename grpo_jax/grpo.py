"""Group Relative Policy Optimization on one screen.

Algorithm 1 of DeepSeekMath (arXiv:2402.03300) as pure functions over pytrees: sample a group for
each prompt, reward it, compare each candidate with its group, take clipped policy-gradient steps.
Files, clocks, logs and text rewards live elsewhere (`training.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from grpo_jax.algorithms import (
  REDUCTIONS,
  AdvantageScale,
  Aggregation,
  LossSums,
  group_advantages,
  grpo_loss,
  k3_divergence,
  loss_count,
  loss_metrics,
)
from grpo_jax.models import DecoderConfig, Params, Remat, TokenLogprobs, completion_logprobs
from grpo_jax.placement import split_prompts
from grpo_jax.sampling import SamplingConfig, sample_groups
from grpo_jax.sharding import split_parameters
from grpo_jax.types import GRPOBatch, Prompts, Rollout, TrainState

RewardFn = Callable[[Rollout], jax.Array]
Assemble = Callable[[Params], Params]


@dataclass(frozen=True)
class GRPOConfig:
  """The numbers of Algorithm 1; static under jit.

  Attributes:
    sampling: how the groups are drawn.
    advantage: `std` (the paper) or `none`: what group advantages are divided by.
    aggregation: `sequence` (the paper) or `token`: what the loss is a mean over.
    clip_low: epsilon below 1 for the ratio.
    clip_high: epsilon above 1 for the ratio.
    kl_weight: beta, in reward per nat; 0 needs no reference policy.
    inner_updates: mu, passes over each batch of completions.
    minibatches: optimizer steps a pass, each on its share of the prompts.
    micro_batch_prompts: prompts in one backward pass; 0 takes a whole minibatch. The result does
      not depend on it.
    remat: what of a layer the backward pass computes again instead of keeping it: `none`, `dots`
      (all but the products with weights) or `layers` (all).
    skip_idle: leave micro-batches out whose groups are all without spread; exact, but not possible
      with a KL term. It reorders the prompt axis and is tested on one device only, where `run.Run`
      sets it.
    gather_weights: sample with the weights whole along `fsdp`: gathered once, not for every token,
      and held by each device (as the tensor axis splits them) in the compute dtype meanwhile.
  """

  sampling: SamplingConfig = field(default_factory=SamplingConfig)
  advantage: AdvantageScale = "std"
  aggregation: Aggregation = "sequence"
  clip_low: float = 0.2
  clip_high: float = 0.2
  kl_weight: float = 0.0
  inner_updates: int = 1
  minibatches: int = 1
  micro_batch_prompts: int = 0
  remat: Remat = "none"
  skip_idle: bool = False
  gather_weights: bool = True

  def __post_init__(self) -> None:
    if self.sampling.group_size < 2:
      raise ValueError("group_size must be at least 2: a candidate is compared with its group")
    if not 0 < self.clip_low < 1 or self.clip_high <= 0:
      raise ValueError("clip_low must lie in (0, 1) and clip_high must be positive")
    if self.kl_weight < 0:
      raise ValueError("kl_weight must not be negative")
    if self.skip_idle and self.kl_weight:
      raise ValueError("skip_idle needs a kl_weight of 0: a KL term moves every group")
    if self.inner_updates < 1 or self.minibatches < 1 or self.micro_batch_prompts < 0:
      raise ValueError("inner_updates and minibatches must be at least 1, micro_batch_prompts 0")


def grpo_step(
  state: TrainState,
  ref_params: Params | None,
  prompts: Prompts,
  reward_fn: RewardFn,
  *,
  policy: DecoderConfig,
  tx: optax.GradientTransformation,
  cfg: GRPOConfig,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One iteration of Algorithm 1, DeepSeekMath (arXiv:2402.03300).

  With a `reward_fn` of jnp operations the whole step goes under one `jax.jit`; with a text reward
  on the host the two halves are compiled each for themselves (`training.py`).

  Args:
    state: the policy before the step.
    ref_params: the frozen reference, or None when `cfg.kl_weight` is 0.
    prompts: P prompts of S tokens.
    reward_fn: from a `Rollout` to rewards [P, G] float32.
    policy: the decoder.
    tx: the optimizer.
    cfg: the numbers of the algorithm.

  Returns:
    The state after the step and its metrics (float32 scalars).
  """
  rollout = sample_groups(policy, state.params, prompts, step_key(state), cfg.sampling)  # pi_old
  rewards = reward_fn(rollout)  # r_i  [P, G]
  batch = make_batch(rollout, rewards, ref_params, policy=policy, cfg=cfg)  # A_i  [P, G]
  return update(state, batch, policy=policy, tx=tx, cfg=cfg)  # mu times


def step_key(state: TrainState) -> jax.Array:
  """The key of this step's samples: a function of the run's seed and the step alone."""
  return jax.random.fold_in(state.key, state.step)


def make_batch(
  rollout: Rollout,
  rewards: jax.Array,
  ref_params: Params | None,
  *,
  policy: DecoderConfig,
  cfg: GRPOConfig,
) -> GRPOBatch:
  """Turns rewards [P, G] into advantages and adds the reference's log-probs where needed."""
  ref_logp = None
  if cfg.kl_weight:
    if ref_params is None:
      raise ValueError("kl_weight is not 0, so a reference policy is needed")
    ref_logp = lax.stop_gradient(_all_logprobs(policy, ref_params, rollout, cfg))
  return GRPOBatch(rollout, group_advantages(rewards, scale=cfg.advantage), ref_logp)


def kl_to_reference(
  ref_params: Params, rollout: Rollout, *, policy: DecoderConfig, cfg: GRPOConfig
) -> jax.Array:
  """The k3 estimate of KL(pi_old || pi_ref) over the sampled tokens, to watch: nats per token."""
  ref_logp = _all_logprobs(policy, ref_params, rollout, cfg)
  divergence = jnp.where(rollout.mask, k3_divergence(rollout.logp, ref_logp), 0.0)
  return divergence.sum() / jnp.maximum(rollout.mask.sum(), 1)


def update(
  state: TrainState,
  batch: GRPOBatch,
  *,
  policy: DecoderConfig,
  tx: optax.GradientTransformation,
  cfg: GRPOConfig,
  assemble: Assemble = lambda trained: trained,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes `inner_updates` passes of `minibatches` optimizer steps on one batch.

  Args:
    state: the policy before; its buffers may be donated.
    batch: completions, advantages and log-probs under pi_old (and pi_ref).
    policy: the decoder.
    tx: the optimizer.
    cfg: the numbers of the algorithm.
    assemble: from what is trained, `state.params`, to the decoder's parameters: the same, or
      adapters laid over a frozen base (`models.attach`), which then has no gradient at all.

  Returns:
    The state after (its step one higher) and the metrics, averaged over the optimizer steps. A step
    whose loss or gradient is not finite changes nothing and counts in `skipped_updates`.
  """
  pieces = _split(batch, cfg.minibatches)

  def optimizer_step(carry, piece):
    params, opt_state = carry
    grads, metrics = policy_gradient(params, piece, policy=policy, cfg=cfg, assemble=assemble)
    metrics["grad_norm"] = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics["loss"] + metrics["grad_norm"])
    metrics["skipped_updates"] = 1.0 - finite  # one bad batch must not spoil the parameters
    updates, new_opt_state = tx.update(grads, opt_state, params)
    new = (optax.apply_updates(params, updates), new_opt_state)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, carry), metrics

  def one_pass(carry, _):
    return lax.scan(optimizer_step, carry, pieces)

  carry = (state.params, state.opt_state)
  if cfg.inner_updates * cfg.minibatches == 1:  # the common case needs no loop around it
    carry, metrics = optimizer_step(carry, batch)
  else:
    carry, stacked = lax.scan(one_pass, carry, None, length=cfg.inner_updates)
    metrics = {name: REDUCTIONS.get(name, jnp.mean)(x) for name, x in stacked.items()}
  return TrainState(*carry, state.step + 1, state.key), metrics


def policy_gradient(
  params: Params,
  batch: GRPOBatch,
  *,
  policy: DecoderConfig,
  cfg: GRPOConfig,
  assemble: Assemble = lambda trained: trained,
) -> tuple[Params, dict[str, jax.Array]]:
  """The gradient of the GRPO loss over a batch, accumulated over micro-batches of prompts.

  Sums and counts are carried and divided once, so the gradient is that of the whole batch whatever
  the micro-batch is. A group whose rewards are all equal has a gradient of exactly zero: with
  `cfg.skip_idle` such groups go last, and micro-batches that hold nothing else are left out. They
  count in the loss's denominator all the same, but not in the diagnostics.

  Args:
    params: what is trained.
    batch: completions, advantages and log-probs under pi_old (and pi_ref).
    policy: the decoder.
    cfg: the numbers of the algorithm.
    assemble: see `update`.

  Returns:
    The gradient, like `params`, and the metrics (float32 scalars).
  """

  def sums_of(scores: TokenLogprobs, piece: GRPOBatch) -> LossSums:
    sums = grpo_loss(
      scores.logp,
      piece.rollout.logp,
      piece.advantages,
      piece.rollout.mask,
      ref_logp=piece.ref_logp,
      clip_low=cfg.clip_low,
      clip_high=cfg.clip_high,
      kl_weight=cfg.kl_weight,
      aggregation=cfg.aggregation,
    )
    sums.sums["entropy"] = jnp.sum(jnp.where(piece.rollout.mask, scores.entropy, 0.0))
    return sums

  def loss(params, piece):
    sums = sums_of(_logprobs(policy, assemble(params), piece.rollout, cfg), piece)
    return sums.total, sums

  def slope(params, piece):
    grads, sums = jax.grad(loss, has_aux=True)(params, piece)
    return split_parameters(policy, grads), sums

  batch = jax.tree.map(jnp.asarray, batch)  # rows are picked by traced indices below
  if cfg.skip_idle:
    batch = _teaching_first(batch)
  micro = _in_micro_batches(batch, cfg.micro_batch_prompts)
  pieces = micro.advantages.shape[0]
  piece = lambda i: jax.tree.map(lambda x: x[i], micro)

  def accumulate(i, carry):
    grads, sums = slope(params, piece(i))
    return jax.tree.map(jnp.add, carry[0], grads), carry[1] + sums

  if pieces == 1:
    grads, sums = slope(params, piece(0))
  else:
    taken: int | jax.Array = pieces
    if cfg.skip_idle:  # the first is always taken: it has the diagnostics
      taken = jnp.maximum(jnp.sum(jnp.any(micro.advantages != 0, axis=(1, 2))), 1)
    scores = TokenLogprobs(piece(0).rollout.logp, piece(0).rollout.logp)  # for their shapes
    nothing = LossSums.nothing(jax.eval_shape(sums_of, scores, piece(0)))
    zeros = split_parameters(policy, jax.tree.map(jnp.zeros_like, params))
    grads, sums = lax.fori_loop(0, taken, accumulate, (zeros, nothing))
  count = jnp.maximum(loss_count(batch.rollout.mask, cfg.aggregation), 1.0)
  sums = sums._replace(count=count)
  return jax.tree.map(lambda g: g / count.astype(g.dtype), grads), loss_metrics(sums)


def _teaching_first(batch: GRPOBatch) -> GRPOBatch:
  """Moves groups without advantages to the end; the others keep their order."""
  order = jnp.argsort(jnp.all(batch.advantages == 0, axis=1), stable=True)
  return jax.tree.map(lambda x: x[order], batch)


def _all_logprobs(policy: DecoderConfig, params: Params, rollout: Rollout, cfg: GRPOConfig):
  """Log-probs [P, G, T] of a whole batch, a micro-batch at a time."""
  score = lambda piece: _logprobs(policy, params, piece, cfg).logp
  micro = _in_micro_batches(rollout, cfg.micro_batch_prompts)
  return lax.map(score, micro).reshape(rollout.logp.shape)


def _logprobs(policy: DecoderConfig, params: Params, rollout: Rollout, cfg: GRPOConfig):
  """Scores completions under the policy that sampled them: at the sampling temperature."""
  prompts = rollout.prompts
  return completion_logprobs(
    policy,
    params,
    prompts.tokens,
    prompts.mask,
    rollout.tokens,
    temperature=cfg.sampling.temperature or 1.0,
    remat=cfg.remat,
  )


def _in_micro_batches(tree: Any, prompts: int) -> Any:
  size = jax.tree.leaves(tree)[0].shape[0]
  if prompts and size % prompts:
    raise ValueError(f"{size} prompts cannot be cut into micro-batches of {prompts}")
  return _split(tree, size // (prompts or size))


def _split(tree: Any, pieces: int) -> Any:
  """Cuts the prompt axis [P, ..] into [pieces, P / pieces, ..]."""
  size = jax.tree.leaves(tree)[0].shape[0]
  if pieces < 1 or size % pieces:
    raise ValueError(f"{size} prompts cannot be cut into {pieces} equal pieces")
  cut = jax.tree.map(lambda x: x.reshape(pieces, size // pieces, *x.shape[1:]), tree)
  return split_prompts(cut, axis=1)  # a device's prompts lie together: some pieces would not be its
