"""The two compiled programs of a step, which training runs and the planner compiles ahead of time.

Text rewards run on the host between them (see `grpo.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from grpo_jax.grpo import GRPOConfig, kl_to_reference, make_batch, update
from grpo_jax.models import DecoderConfig
from grpo_jax.sampling import SamplingConfig, sample_groups
from grpo_jax.sharding import state_shardings

Schedule = Callable[[Any], Any]


def make_optimizer(
  learning_rate: float, *, warmup_steps: int, weight_decay: float, clip_norm: float
) -> tuple[optax.GradientTransformation, Schedule]:
  """AdamW behind a global-norm clip, and its schedule: step count from 1 -> learning rate."""
  schedule = optax.linear_schedule(
    0.0 if warmup_steps else learning_rate, learning_rate, max(warmup_steps, 1)
  )
  tx = optax.chain(
    optax.clip_by_global_norm(clip_norm),
    # The first step must move: warm-up counts from 1.
    optax.adamw(lambda count: schedule(count + 1), b2=0.99, weight_decay=weight_decay),
  )
  return tx, schedule


def resolve(
  cfg: GRPOConfig, policy: DecoderConfig, mesh: Mesh, stop_ids: Sequence[int]
) -> GRPOConfig:
  """The algorithm's settings with what the model and the mesh decide filled in."""
  sampling = dataclasses.replace(
    cfg.sampling, stop_ids=tuple(stop_ids), pad_id=policy.pad_token_id or 0
  )
  idle = mesh.size == 1 and not cfg.kl_weight
  return dataclasses.replace(cfg, sampling=sampling, skip_idle=idle)


def sample_program(policy: DecoderConfig, mesh: Mesh, sampling: SamplingConfig) -> Any:
  """`sample_groups` under `jax.jit`: (params, prompts, key) -> `Rollout`."""
  return jax.jit(functools.partial(_sample, policy, mesh, sampling))


def learn_program(
  policy: DecoderConfig, mesh: Mesh, tx: optax.GradientTransformation, cfg: GRPOConfig
) -> Any:
  """All that follows rewards, under `jax.jit` with the state donated.

  Returns:
    (state, ref_params, rollout, rewards [P, G]) -> the next state, placed as before, and metrics.
  """

  def learn(state, ref_params, rollout, rewards):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      batch = make_batch(rollout, rewards, ref_params, policy=policy, cfg=cfg)
      state, metrics = update(state, batch, policy=policy, tx=tx, cfg=cfg)
    return jax.lax.with_sharding_constraint(state, state_shardings(policy, mesh, state)), metrics

  return jax.jit(learn, donate_argnums=0)


def kl_program(policy: DecoderConfig, mesh: Mesh, cfg: GRPOConfig) -> Any:
  """`kl_to_reference` under `jax.jit`: (ref_params, rollout) -> nats per token."""

  def kl(ref_params, rollout):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return kl_to_reference(ref_params, rollout, policy=policy, cfg=cfg)

  return jax.jit(kl)


def _sample(policy, mesh, sampling, params, prompts, key):
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    return sample_groups(policy, params, prompts, key, sampling)
