"""Group Relative Policy Optimization on one screen.

Algorithm 1 of DeepSeekMath (arXiv:2402.03300) as pure functions over pytrees: sample a group for
each prompt, reward it, compare each candidate with its group, take clipped policy-gradient steps.
`grpo_step` is what training, replay and the notebook run; files, clocks and text rewards are in the
`collect` that they give it. Losses and advantages are in `losses.py`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from grpo_jax import losses
from grpo_jax.config import GRPOConfig
from grpo_jax.losses import k3_divergence, masked_mean
from grpo_jax.models import (
  DecoderConfig,
  LoraConfig,
  Params,
  TokenLogprobs,
  completion_logprobs,
  in_bits,
  with_adapters,
  with_weights,
)
from grpo_jax.models.placement import split_prompts
from grpo_jax.sharding import AnyMesh, on_mesh, split_parameters, state_shardings
from grpo_jax.types import Array, GRPOBatch, Prompts, Rollout, TrainState

Collect = Callable[[TrainState, Prompts], tuple[Rollout, Array]]
Update = Callable[[TrainState, GRPOBatch], tuple[TrainState, dict[str, jax.Array]]]
Reference = Callable[[Rollout], jax.Array | None]


def grpo_step(
  state: TrainState,
  prompts: Prompts,
  *,
  collect: Collect,
  update: Update,
  reference: Reference = lambda rollout: None,
  settings: GRPOConfig,
) -> tuple[TrainState, dict[str, jax.Array], Rollout, Array]:
  """One iteration of Algorithm 1, DeepSeekMath (arXiv:2402.03300).

  With a `collect` of jnp operations the whole step goes under one `jax.jit`; text rewards run on
  the host between compiled programs (`sampling.sample_program`, `update_program`).

  Args:
    state: the policy before the step; its buffers may be donated to `update`.
    prompts: P prompts of S tokens.
    collect: from the state and the prompts to a `Rollout` and its rewards [P, G] float32.
    update: from the state and a `GRPOBatch` to the next state and metrics.
    reference: from a rollout to log-probs under the frozen reference [P, G, T], or to None where
      `settings.kl_weight` is 0.
    settings: the numbers of the algorithm.

  Returns:
    The state after the step, its metrics (float32 scalars), the rollout and its rewards.
  """
  rollout, rewards = collect(state, prompts)  # o_i ~ pi_old and r_i  [P, G, T], [P, G]
  batch = make_batch(rollout, rewards, reference(rollout), settings)  # A_i and token weights
  state, metrics = update(state, batch)  # mu times
  return state, metrics, rollout, rewards


def step_key(state: TrainState) -> jax.Array:
  """The key of this step's samples: a function of the run's seed and the step alone."""
  return jax.random.fold_in(state.key, state.step)


def make_batch(
  rollout: Rollout, rewards: Array, ref_logp: Array | None, settings: GRPOConfig
) -> GRPOBatch:
  """Turns rewards [P, G] into advantages, and the loss mask into weights that sum to 1.

  Raises:
    ValueError: there is a KL term and no `ref_logp`.
  """
  if settings.kl_weight and ref_logp is None:
    raise ValueError("kl_weight is not 0, so a reference policy is needed")
  advantages, weights = _teaching_signal(rewards, rollout.loss_mask, settings)
  return GRPOBatch(rollout, advantages, weights, ref_logp if settings.kl_weight else None)


def advantages_of(rewards: Array, settings: GRPOConfig) -> jax.Array:
  """The advantages [P, G] float32 of rewards [P, G]."""
  return losses.group_advantages(
    rewards, scale=settings.advantage, epsilon=settings.advantage_epsilon
  )


@functools.partial(jax.jit, static_argnames="settings")
def _teaching_signal(
  rewards: Array, loss_mask: Array, settings: GRPOConfig
) -> tuple[jax.Array, jax.Array]:
  """Advantages [P, G], and token weights [P, G, T] that sum to 1 over each minibatch."""
  weigh = functools.partial(
    losses.token_weights,
    aggregation=settings.aggregation,
    max_tokens=settings.sampling.max_tokens,
  )
  pieces = _split(loss_mask, settings.minibatches)
  return advantages_of(rewards, settings), jax.vmap(weigh)(pieces).reshape(loss_mask.shape)


def update(
  state: TrainState,
  batch: GRPOBatch,
  base: Params | None = None,
  *,
  config: DecoderConfig,
  tx: optax.GradientTransformation,
  settings: GRPOConfig,
  lora: LoraConfig | None = None,
  mesh: AnyMesh | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes `inner_updates` passes of `minibatches` optimizer steps on one batch.

  Args:
    state: the policy before; its buffers may be donated.
    batch: from `make_batch`.
    base: the frozen model that adapters are laid over; None trains the whole model.
    config: the decoder.
    tx: the optimizer.
    settings: the numbers of the algorithm.
    lora: what is adapted; with `base`.
    mesh: where the state is placed again; None leaves that open.

  Returns:
    The state after (its step one higher) and the metrics, averaged over the optimizer steps. A step
    whose loss or gradient is not finite changes nothing and counts in `skipped_updates`.
  """

  def optimizer_step(carry, piece):
    params, opt_state = carry
    grads, metrics = policy_gradient(
      params, piece, base, config=config, settings=settings, lora=lora
    )
    metrics["grad_norm"] = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics["loss"] + metrics["grad_norm"])
    metrics["skipped_updates"] = 1.0 - finite  # one bad batch must not spoil the parameters
    updates, new_opt_state = tx.update(grads, opt_state, params)
    new = (optax.apply_updates(params, updates), new_opt_state)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, carry), metrics

  with on_mesh(mesh):
    carry = (state.params, state.opt_state)
    if settings.inner_updates * settings.minibatches == 1:  # the common case needs no loop
      carry, metrics = optimizer_step(carry, batch)
    else:
      pieces = _split(batch, settings.minibatches)
      one_pass = lambda carry, _: lax.scan(optimizer_step, carry, pieces)
      carry, steps = lax.scan(one_pass, carry, None, length=settings.inner_updates)
      metrics = {name: _over_steps(name, values) for name, values in steps.items()}
  state = TrainState(*carry, state.step + 1, state.key)
  if mesh is not None:
    state = lax.with_sharding_constraint(state, state_shardings(config, mesh, state))
  return state, metrics


def policy_gradient(
  params: Params,
  batch: GRPOBatch,
  base: Params | None = None,
  *,
  config: DecoderConfig,
  settings: GRPOConfig,
  lora: LoraConfig | None = None,
) -> tuple[Params, dict[str, jax.Array]]:
  """The gradient of the loss over a batch, added up over micro-batches of prompts.

  The token weights are those of the whole batch, so what the micro-batches are does not matter. A
  group whose advantages are all zero has a gradient of exactly zero: with `settings.skip_idle` such
  groups go last, and micro-batches that hold nothing else are left out of the loss, where they add
  nothing, and of the diagnostics.

  Args:
    params: what is trained.
    batch: completions, advantages, token weights and log-probs under pi_old (and pi_ref).
    base: the frozen model that adapters are laid over, which has no gradient; or None.
    config: the decoder.
    settings: the numbers of the algorithm.
    lora: what is adapted; with `base`.

  Returns:
    The gradient, like `params`, and the metrics (float32 scalars).
  """

  # Cast once, not once a micro-batch; adapters are small.
  stored = params if lora else in_bits(config, params)
  base = in_bits(config, base) if base is not None else None

  def gradient(piece):
    loss_of = lambda params: policy_loss(
      with_weights(stored, params), piece, base, config=config, settings=settings, lora=lora
    )
    (loss, scores), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    return split_parameters(config, grads), loss, scores

  batch = jax.tree.map(jnp.asarray, batch)  # rows are picked by traced indices below
  if settings.skip_idle:
    batch = zero_advantage_groups_last(batch)
  micro = _in_micro_batches(batch, settings.micro_batch_prompts)
  count = jax.tree.leaves(micro)[0].shape[0]
  pick = lambda i: jax.tree.map(lambda x: x[i], micro)
  taken: int | jax.Array = count
  if settings.skip_idle:  # the first is always taken: it has the diagnostics
    teaches = jnp.any(micro.advantages != 0, axis=range(1, micro.advantages.ndim))
    taken = jnp.maximum(jnp.sum(teaches), 1)

  def add(i, carry):
    grads, loss, scores = carry
    more, its_loss, its_scores = gradient(pick(i))
    put = lambda whole, piece: lax.dynamic_update_index_in_dim(whole, piece, i, axis=0)
    return (
      jax.tree.map(jnp.add, grads, more),
      loss + its_loss,
      jax.tree.map(put, scores, its_scores),
    )

  if count == 1:
    grads, loss, scores = gradient(pick(0))
    scores = jax.tree.map(lambda x: x[None], scores)
  else:
    zeros = split_parameters(config, jax.tree.map(jnp.zeros_like, params))
    blank = jnp.zeros_like(micro.rollout.logp)
    start = (zeros, jnp.float32(0), TokenLogprobs(blank, blank))
    grads, loss, scores = lax.fori_loop(0, taken, add, start)
  return grads, {"loss": loss} | _diagnostics(scores, micro, taken, settings)


def policy_loss(
  params: Params,
  batch: GRPOBatch,
  base: Params | None = None,
  *,
  config: DecoderConfig,
  settings: GRPOConfig,
  lora: LoraConfig | None = None,
) -> tuple[jax.Array, TokenLogprobs]:
  """What some prompts add to the loss, `sum(token_weights * per_token_loss)`, and their log-probs.

  With `kl_weight` the per-token loss has the k3 estimate of the KL to the reference beside it.
  """
  rollout, mask = batch.rollout, batch.rollout.loss_mask
  scores = rollout_logprobs(params, rollout, base, config=config, settings=settings, lora=lora)
  per_token = per_token_loss(settings)(scores.logp, rollout.logp, batch.advantages, mask)
  if batch.ref_logp is not None:
    divergence = k3_divergence(scores.logp, batch.ref_logp, mask)
    per_token = per_token + settings.kl_weight * divergence
  return jnp.sum(batch.token_weights * per_token), scores


def per_token_loss(settings: GRPOConfig) -> Callable[..., jax.Array]:
  """`settings.loss` with its keyword arguments taken from the settings of the same names.

  Demonstrations have one loss, `nll`.
  """
  if settings.technique == "sft":
    return losses.nll
  loss = losses.LOSSES[settings.loss]
  wanted = [
    name
    for name, parameter in inspect.signature(loss).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  ]
  return functools.partial(loss, **{name: getattr(settings, name) for name in wanted})


def rollout_logprobs(
  params: Params,
  rollout: Rollout,
  base: Params | None = None,
  *,
  config: DecoderConfig,
  settings: GRPOConfig,
  lora: LoraConfig | None = None,
) -> TokenLogprobs:
  """Scores completions under the policy that sampled them: at the sampling temperature."""
  return completion_logprobs(
    config,
    with_adapters(params, base, lora),
    rollout.prompts.tokens,
    rollout.prompts.mask,
    rollout.tokens,
    temperature=settings.sampling.temperature or 1.0,
    remat=settings.remat,
  )


def reference_logprobs(
  params: Params,
  rollout: Rollout,
  *,
  config: DecoderConfig,
  settings: GRPOConfig,
  mesh: AnyMesh | None = None,
) -> jax.Array:
  """Log-probs [P, G, T] under a frozen policy, a micro-batch at a time."""
  score = lambda piece: rollout_logprobs(params, piece, config=config, settings=settings).logp
  with on_mesh(mesh):
    params = in_bits(config, params)
    micro = _in_micro_batches(rollout, settings.micro_batch_prompts)
    return lax.map(score, micro).reshape(rollout.logp.shape)


@jax.jit
def kl_to_reference(rollout: Rollout, ref_logp: Array) -> jax.Array:
  """The k3 estimate of KL(pi_old || pi_ref) over the sampled tokens, to watch: nats per token."""
  divergence = k3_divergence(rollout.logp, ref_logp, rollout.loss_mask)
  return masked_mean(divergence, rollout.loss_mask)


def zero_advantage_groups_last(batch: GRPOBatch) -> GRPOBatch:
  """Moves groups whose advantages are all zero to the end; the others keep their order."""
  zero = jnp.all(batch.advantages == 0, axis=range(1, batch.advantages.ndim))
  order = jnp.argsort(zero, stable=True)
  return jax.tree.map(lambda x: x[order], batch)


def update_program(
  config: DecoderConfig,
  mesh: AnyMesh,
  tx: optax.GradientTransformation,
  settings: GRPOConfig,
  lora: LoraConfig | None = None,
) -> Any:
  """`update` under `jax.jit`, the state donated: (state, batch, base) -> (state, metrics)."""
  bound = functools.partial(update, config=config, tx=tx, settings=settings, lora=lora, mesh=mesh)
  return jax.jit(bound, donate_argnums=0, compiler_options=_in_place(mesh))


def reference_program(config: DecoderConfig, mesh: AnyMesh, settings: GRPOConfig) -> Any:
  """`reference_logprobs` under `jax.jit`: (ref_params, rollout) -> [P, G, T]."""
  return jax.jit(functools.partial(reference_logprobs, config=config, settings=settings, mesh=mesh))


def resolve(
  settings: GRPOConfig, config: DecoderConfig, mesh: AnyMesh, stop_ids: Sequence[int]
) -> GRPOConfig:
  """The algorithm's settings with what the model and the mesh decide filled in."""
  sampling = replace(settings.sampling, stop_ids=tuple(stop_ids), pad_id=config.pad_token_id or 0)
  idle = mesh.size == 1 and not settings.kl_weight and settings.technique == "grpo"
  # What a layer keeps in 16 bits XLA on CPU converts for each layer anew, unless it keeps bits.
  converted = _on_cpu(mesh) and config.dtype != "float32" and settings.remat == "none"
  remat = "dots" if converted else settings.remat
  return replace(settings, sampling=sampling, skip_idle=idle, remat=remat)


def _diagnostics(
  scores: TokenLogprobs, micro: GRPOBatch, taken: int | jax.Array, settings: GRPOConfig
) -> dict[str, jax.Array]:
  """Metrics over the loss tokens of the micro-batches that were taken."""
  rollout = micro.rollout
  count = rollout.loss_mask.shape[0]
  mask = rollout.loss_mask & (jnp.arange(count) < taken)[:, None, None, None]
  whole = lambda x: x.reshape(-1, *x.shape[2:])
  if settings.technique == "sft":
    return losses.nll_metrics(whole(scores.logp), whole(scores.entropy), whole(mask))
  metrics = losses.loss_metrics(
    whole(scores.logp),
    whole(rollout.logp),
    whole(scores.entropy),
    whole(micro.advantages),
    whole(mask),
    clip_low=settings.clip_low,
    clip_high=settings.clip_high,
  )
  if micro.ref_logp is not None:
    mask = whole(mask)
    divergence = k3_divergence(whole(scores.logp), whole(micro.ref_logp), mask)
    metrics["kl"] = masked_mean(divergence, mask)
  return metrics


def _over_steps(name: str, values: jax.Array) -> jax.Array:
  """A metric of several optimizer steps as one number."""
  if name == "skipped_updates":
    return jnp.sum(values)
  reduce = {"min": jnp.min, "max": jnp.max}.get(name.rpartition("/")[2], jnp.mean)
  return reduce(values)


def _in_place(mesh: AnyMesh) -> dict[str, Any] | None:
  """Compiler options with which a donated state is updated without a copy of it.

  XLA on CPU copies AdamW's two moments first, for it overlooks that what reads them goes before
  what writes them, unless it looks closer than its default.
  """
  return {"xla_cpu_copy_insertion_use_region_analysis": True} if _on_cpu(mesh) else None


def _on_cpu(mesh: AnyMesh) -> bool:
  return isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu"


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
