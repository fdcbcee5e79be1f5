"""Supervised fine-tuning in the group layout: the warm start, and GRPO's baseline.

A run on demonstrations (`--technique=sft`) is `grpo_step` with `demonstration_rollout` where GRPO
samples, and the loss `losses.nll`. The rest of this file trains a small model from nothing, which
wants other optimizers, and continuations that share a prompt: where several requests share a set of
tools, the tools are the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from grpo_jax.config import SamplingConfig
from grpo_jax.models import DecoderConfig, Params, Remat, completion_logprobs, is_matrix
from grpo_jax.settings import Settings, setting
from grpo_jax.types import Array, Prompts, Rollout


def demonstration_rollout(
  prompts: Prompts, answers: Sequence[Sequence[int]], sampling: SamplingConfig
) -> Rollout:
  """Demonstrations as a rollout of one completion a prompt; nobody sampled it, so its logp is 0.

  Args:
    prompts: P of them.
    answers: P lists of token ids, each with at most `sampling.max_tokens`.
    sampling: `max_tokens` (T) and `pad_id`.

  Returns:
    [P, 1, T], NumPy arrays beside the prompts.
  """
  shape = (len(answers), 1, sampling.max_tokens)
  tokens, mask = np.full(shape, sampling.pad_id, np.int32), np.zeros(shape, bool)
  for row, answer in enumerate(answers):
    tokens[row, 0, : len(answer)] = answer
    mask[row, 0, : len(answer)] = True
  logp = np.zeros(shape, np.float32)
  return Rollout(prompts, tokens, mask, mask, logp, logp)


class SFTBatch(NamedTuple):
  """Prompts and their continuations.

  Attributes:
    prompt_tokens: [P, S] int32.
    prompt_mask: [P, S] bool, real tokens; padding on either side.
    completion_tokens: [P, G, T] int32, padded on the right.
    loss_weights: [P, G, T] float32, how much each token counts in the loss: 1 on the answer (the
      end-of-turn token among it), less on text around it that is learned on the side, 0 on padding.
  """

  prompt_tokens: Array
  prompt_mask: Array
  completion_tokens: Array
  loss_weights: Array


@dataclass(frozen=True)
class SFTConfig(Settings):
  """How supervised training is run."""

  learning_rate: float = setting(
    1e-3, "AdamW's peak, reached after the warm-up, then a cosine down", above=0
  )
  muon_learning_rate: float = setting(
    0.0,
    "peak for the layers' matrices, which Muon (Jordan et al. 2024) then updates; 0: AdamW for all",
    low=0,
  )
  warmup_steps: int = setting(100, "linear warm-up", unit="steps", low=0)
  total_steps: int = setting(1000, "supervised steps in the whole schedule", low=1, name="steps")
  final_rate: float = setting(0.05, "share of the peak that the cosine ends at", low=0, high=1)
  weight_decay: float = setting(0.01, "decoupled, on matrices only", low=0)
  clip_norm: float = setting(1.0, "gradients are scaled down to this global norm", above=0)
  b2: float = setting(0.98, "AdamW's decay of the second moment a step", low=0, below=1)
  remat: Remat = setting("none", "what the backward pass computes again; see GRPOConfig")

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.warmup_steps >= self.total_steps:
      raise ValueError(
        f"--warmup_steps={self.warmup_steps} must be below --steps={self.total_steps}"
      )


def sft_optimizer(settings: SFTConfig) -> optax.GradientTransformation:
  """Builds AdamW (and Muon for the layers' matrices) with clipping, warm-up and one cosine."""
  schedule = lambda peak: optax.warmup_cosine_decay_schedule(
    0.0, peak, settings.warmup_steps, settings.total_steps, settings.final_rate * peak
  )
  matrices = lambda params: jax.tree_util.tree_map_with_path(lambda at, _: is_matrix(at), params)
  clip = optax.clip_by_global_norm(settings.clip_norm)
  if not settings.muon_learning_rate:
    rate = schedule(settings.learning_rate)
    adamw = optax.adamw(rate, b2=settings.b2, weight_decay=settings.weight_decay, mask=matrices)
    return optax.chain(clip, adamw)
  muon = optax.contrib.muon(
    schedule(settings.muon_learning_rate),
    weight_decay=settings.weight_decay,
    adam_b2=settings.b2,
    adam_learning_rate=schedule(settings.learning_rate),
    muon_weight_dimension_numbers=_layer_matrices,
  )
  return optax.chain(clip, muon)


def _layer_matrices(params: Params) -> Params:
  """Marks what Muon updates, one layer's matrix at a time.

  Embeddings and an untied head are look-up tables: not they.
  """
  each = MuonDimensionNumbers(reduction_axis=1, output_axis=2)  # the first axis counts layers
  mark = lambda path, _: each if path[0].key == "layers" and is_matrix(path) else None
  return jax.tree_util.tree_map_with_path(mark, params)


def sft_loss(
  config: DecoderConfig, params: Params, batch: SFTBatch, *, remat: Remat = "none"
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted mean negative log-likelihood, in nats per token.

  Returns:
    The loss, float32 scalar, and two metrics over the tokens of weight 1: `nll`, and `accuracy`,
    the share of them that have a probability above one half.
  """
  scores = completion_logprobs(
    config, params, batch.prompt_tokens, batch.prompt_mask, batch.completion_tokens, remat=remat
  )
  weighted = jnp.where(batch.loss_weights > 0, batch.loss_weights * scores.logp, 0.0)
  loss = -jnp.sum(weighted) / jnp.maximum(batch.loss_weights.sum(), 1.0)
  answer = batch.loss_weights == 1
  count = jnp.maximum(answer.sum(), 1)
  nll = -jnp.sum(jnp.where(answer, scores.logp, 0.0)) / count
  sure = jnp.sum(answer & (scores.logp > jnp.log(0.5))) / count
  return loss, {"nll": nll, "accuracy": sure}


def make_sft_step(
  config: DecoderConfig, settings: SFTConfig, tx: optax.GradientTransformation
) -> Callable:
  """Compiles `(params, opt_state, batch) -> (params, opt_state, metrics)`; both are donated."""

  def step(params, opt_state, batch):
    loss = lambda p: sft_loss(config, p, batch, remat=settings.remat)
    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return optax.apply_updates(params, updates), opt_state, metrics

  return jax.jit(step, donate_argnums=(0, 1))
