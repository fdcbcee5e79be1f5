"""The two compiled programs of a step, which training runs and the planner compiles ahead of time.

Text rewards run on the host between them (see `grpo.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from grpo_jax.data.batches import bucket_length, pad_prompts
from grpo_jax.grpo import GRPOConfig, kl_to_reference, make_batch, update
from grpo_jax.models import DecoderConfig, LoraConfig, Params, attach
from grpo_jax.sampling import LENGTH_BUCKETS, SamplingConfig, sample_groups
from grpo_jax.sharding import AnyMesh, gathered_parameters, state_shardings
from grpo_jax.types import Prompts, Rollout


def assemble(lora: LoraConfig | None, base: Params | None, trained: Params) -> Params:
  """The decoder's parameters: what is trained, or the frozen base with its adapters laid over."""
  return attach(base, trained, lora) if lora and base is not None else trained


def resolve(
  cfg: GRPOConfig, policy: DecoderConfig, mesh: AnyMesh, stop_ids: Sequence[int]
) -> GRPOConfig:
  """The algorithm's settings with what the model and the mesh decide filled in."""
  sampling = dataclasses.replace(
    cfg.sampling, stop_ids=tuple(stop_ids), pad_id=policy.pad_token_id or 0
  )
  idle = mesh.size == 1 and not cfg.kl_weight
  return dataclasses.replace(cfg, sampling=sampling, skip_idle=idle)


def sample_program(
  policy: DecoderConfig,
  mesh: AnyMesh,
  sampling: SamplingConfig,
  lora: LoraConfig | None = None,
  *,
  gather_weights: bool = True,
) -> Any:
  """`sample_groups` under `jax.jit`: (trained, base, prompts, key) -> `Rollout`.

  `base` is None unless adapters are trained; `gather_weights` as in `GRPOConfig`.
  """

  def sample(trained, base, prompts, key):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      params = assemble(lora, base, trained)
      if gather_weights:
        params = gathered_parameters(policy, params)
      return sample_groups(policy, params, prompts, key, sampling)

  return jax.jit(sample)


def learn_program(
  policy: DecoderConfig,
  mesh: AnyMesh,
  tx: optax.GradientTransformation,
  cfg: GRPOConfig,
  lora: LoraConfig | None = None,
) -> Any:
  """All that follows rewards, under `jax.jit` with the state donated.

  Returns:
    (state, base, ref_params, rollout, rewards [P, G]) -> the next state, placed as before, and
    metrics. `base` is None unless adapters are trained.
  """

  def learn(state, base, ref_params, rollout, rewards):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      batch = make_batch(rollout, rewards, ref_params, policy=policy, cfg=cfg)
      whole = functools.partial(assemble, lora, base)
      state, metrics = update(state, batch, policy=policy, tx=tx, cfg=cfg, assemble=whole)
    return jax.lax.with_sharding_constraint(state, state_shardings(policy, mesh, state)), metrics

  return jax.jit(learn, donate_argnums=0, compiler_options=_in_place(mesh))


def _in_place(mesh: AnyMesh) -> dict[str, Any] | None:
  """Compiler options with which a donated state is updated without a copy of it.

  XLA on CPU copies AdamW's two moments first, for it overlooks that what reads them goes before
  what writes them, unless it looks closer than its default.
  """
  on_cpu = isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu"
  return {"xla_cpu_copy_insertion_use_region_analysis": True} if on_cpu else None


def kl_program(policy: DecoderConfig, mesh: AnyMesh, cfg: GRPOConfig) -> Any:
  """`kl_to_reference` under `jax.jit`: (ref_params, rollout) -> nats per token."""

  def kl(ref_params, rollout):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return kl_to_reference(ref_params, rollout, policy=policy, cfg=cfg)

  return jax.jit(kl)


def pad_to_bucket(
  prompts: Sequence[Sequence[int]], pad_id: int, buckets: Sequence[int] = LENGTH_BUCKETS
) -> Prompts:
  """A step's prompts as arrays on the host, padded to the bucket of the longest."""
  length = bucket_length(max(map(len, prompts)), buckets)
  tokens, mask = pad_prompts(prompts, length, pad_id)
  return Prompts(tokens, mask, np.arange(len(prompts), dtype=np.int32))


def cut_to_bucket(rollout: Rollout, longest: int) -> Rollout:
  """Cuts the padding behind the longest completion, of so many tokens, down to a bucket."""
  length = min(bucket_length(longest, LENGTH_BUCKETS), rollout.tokens.shape[2])
  cut = lambda x: x[..., :length]
  return Rollout(rollout.prompts, *(cut(x) for x in rollout[1:]))
