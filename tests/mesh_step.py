"""One GRPO step on several meshes of 8 CPU devices, for `test_sharding.py`, which runs this file.

The number of devices is settled when JAX starts, so this needs a process of its own:

    python mesh_step.py OUT.npz CHECKPOINTS MESH...
"""

from __future__ import annotations

import os
import sys

os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# XLA's threads, not only cores: independent collectives wait inside them, and with 8 devices on two
# cores too few were left to bring the last device to its collective (a time-out after 40 s).
os.environ["NPROC"] = "64"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from grpo_jax.grpo import GRPOConfig, grpo_step, reference_program, step_key, update_program
from grpo_jax.models import DecoderConfig, init_params, is_matrix
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.sampling import SamplingConfig, sample_program
from grpo_jax.sharding import batch_sharding, make_mesh, state_shardings
from grpo_jax.types import Prompts, TrainState

CONFIG = DecoderConfig(64, 32, 48, 2, 4, 2, 8)
SAMPLING = SamplingConfig(group_size=2, max_tokens=5, stop_ids=(1, 2, 3, 4, 5))
CFG = GRPOConfig(sampling=SAMPLING, kl_weight=0.1, micro_batch_prompts=4)
TX = optax.sgd(1.0, momentum=0.9)  # after one step the momentum is the gradient


def first_state(mesh) -> TrainState:
  """The state that every mesh starts from, placed on it."""
  larger = lambda path, x: 10 * x if is_matrix(path) else x
  params = jax.tree_util.tree_map_with_path(larger, init_params(CONFIG, jax.random.key(0)))
  state = TrainState(params, TX.init(params), jnp.int32(0), jax.random.key(1))
  return jax.device_put(state, state_shardings(CONFIG, mesh, state))


def step_on(mesh, state: TrainState, reference, base=None, lora=None):
  """Samples, rewards and updates as `train.take_step` does: the rollout, the state after, metrics.

  Args:
    mesh: where.
    state: the one before, donated.
    reference: parameters of the KL term's policy.
    base: the frozen model under adapters.
    lora: the adapters' settings.
  """
  rng = np.random.default_rng(0)
  mask = np.arange(6) >= rng.integers(0, 5, (8, 1))
  prompts = Prompts(
    rng.integers(0, 64, (8, 6)).astype(np.int32), mask, np.arange(8, dtype=np.int32)
  )
  prompts = jax.device_put(prompts, batch_sharding(mesh))
  sample = sample_program(CONFIG, mesh, SAMPLING, lora)
  update = update_program(CONFIG, mesh, TX, CFG, lora)
  score_reference = reference_program(CONFIG, mesh, CFG)

  def collect(state, prompts):
    rollout = sample(state.params, base, prompts, step_key(state))
    tokens, kept = np.asarray(rollout.tokens), np.asarray(rollout.completion_mask)
    rewards = ((tokens % 3 == 0) & kept).sum(-1) / kept.sum(-1)
    return rollout, rewards.astype(np.float32)

  state, metrics, rollout, _ = grpo_step(
    state,
    prompts,
    collect=collect,
    update=lambda state, batch: update(state, batch, base),
    reference=lambda rollout: score_reference(reference, rollout),
    settings=CFG,
  )
  return rollout, state, metrics


def share_on_a_device(array) -> float:
  """The share of an array that the first device holds."""
  return array.addressable_shards[0].data.size / array.size


def main(out: str, folder: str, *meshes: str) -> None:
  found = {}
  with Checkpoints(folder) as checkpoints:
    for text in meshes:
      mesh = make_mesh(text)
      before, state = first_state(mesh), first_state(mesh)
      reference = jax.tree.map(lambda x: 0.9 * x, state.params)
      rollout, state, metrics = step_on(mesh, state, reference)
      gradient = state.opt_state[0].trace
      numbers = {
        "tokens": rollout.tokens,
        "logp": rollout.logp,
        "gradient": ravel_pytree(jax.device_get(gradient))[0],
        "params": ravel_pytree(jax.device_get(state.params))[0],
        "metrics": np.array([float(metrics[name]) for name in sorted(metrics)]),
        "shares": [
          share_on_a_device(tree["layers"]["gate"]["kernel"])
          for tree in (before.params, state.params, gradient)
        ],
        "prompt_share": share_on_a_device(rollout.prompts.tokens),
      }
      # A checkpoint of one mesh (the first) is read on every other.
      if text == meshes[0]:
        checkpoints.save(state, {})
        checkpoints.wait()
      restored, _ = checkpoints.restore(1, first_state(mesh))
      numbers["restored"] = ravel_pytree(jax.device_get(restored.params))[0]
      numbers["restored_share"] = share_on_a_device(restored.params["layers"]["gate"]["kernel"])
      found |= {f"{text}/{name}": np.asarray(value) for name, value in numbers.items()}
  np.savez(out, **found)


if __name__ == "__main__":
  main(*sys.argv[1:])
