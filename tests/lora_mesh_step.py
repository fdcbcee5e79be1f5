"""One GRPO step on adapters on several meshes, for `test_lora_run.py`, which runs this file.

python lora_mesh_step.py OUT.npz MESH...
"""

from __future__ import annotations

import sys

from mesh_step import CFG, CONFIG, SAMPLING, TX, first_state, share_on_a_device

import jax  # isort: skip  # mesh_step, a script beside this one, settles the devices first
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from grpo_jax.grpo import grpo_step, reference_program, step_key, update_program
from grpo_jax.models import LoraConfig, init_adapters
from grpo_jax.sampling import sample_program
from grpo_jax.sharding import batch_sharding, make_mesh, state_shardings
from grpo_jax.types import Prompts, TrainState

LORA = LoraConfig(4, 8.0)


def step_on(mesh):
  """Samples, rewards and updates as `train.take_step` does."""
  base = first_state(mesh).params
  adapters = jax.tree.map(lambda x: x + 0.1, init_adapters(CONFIG, LORA, jax.random.key(2)))
  state = TrainState(adapters, TX.init(adapters), jnp.int32(0), jax.random.key(1))
  state = jax.device_put(state, state_shardings(CONFIG, mesh, state))
  rng = np.random.default_rng(0)
  mask = np.arange(6) >= rng.integers(0, 5, (8, 1))
  tokens = rng.integers(0, 64, (8, 6)).astype(np.int32)
  prompts = jax.device_put(
    Prompts(tokens, mask, np.arange(8, dtype=np.int32)), batch_sharding(mesh)
  )

  sample = sample_program(CONFIG, mesh, SAMPLING, LORA)
  update = update_program(CONFIG, mesh, TX, CFG, LORA)
  score_reference = reference_program(CONFIG, mesh, CFG)

  def collect(state, prompts):
    rollout = sample(state.params, base, prompts, step_key(state))
    drawn, kept = np.asarray(rollout.tokens), np.asarray(rollout.completion_mask)
    rewards = ((drawn % 3 == 0) & kept).sum(-1) / kept.sum(-1)
    return rollout, rewards.astype(np.float32)

  state, metrics, rollout, _ = grpo_step(
    state,
    prompts,
    collect=collect,
    update=lambda state, batch: update(state, batch, base),
    reference=lambda rollout: score_reference(base, rollout),
    settings=CFG,
  )
  return base, rollout, state, metrics


def main(out: str, *meshes: str) -> None:
  found = {}
  for text in meshes:
    base, rollout, state, metrics = step_on(make_mesh(text))
    layer = state.params["layers"]
    numbers = {
      "tokens": rollout.tokens,
      "logp": rollout.logp,
      "gradient": ravel_pytree(jax.device_get(state.opt_state[0].trace))[0],
      "params": ravel_pytree(jax.device_get(state.params))[0],
      "metrics": [float(metrics[name]) for name in sorted(metrics)],
      "shares": [
        share_on_a_device(layer[target][half])
        for target in ("gate", "down")
        for half in ("lora_a", "lora_b")
      ],
      "base_share": share_on_a_device(base["layers"]["gate"]["kernel"]),
    }
    found |= {f"{text}/{name}": np.asarray(value) for name, value in numbers.items()}
  np.savez(out, **found)


if __name__ == "__main__":
  main(*sys.argv[1:])
