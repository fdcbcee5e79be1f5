"""One step on demonstrations on several meshes, for `test_sft_run.py`, which runs this file.

python sft_mesh_step.py OUT.npz MESH...
"""

from __future__ import annotations

import dataclasses
import sys

from mesh_step import CFG, CONFIG, TX, first_state

import jax  # isort: skip  # mesh_step, a script beside this one, settles the devices first
import numpy as np
from jax.flatten_util import ravel_pytree

from grpo_jax.grpo import grpo_step, update_program
from grpo_jax.sft import demonstration_rollout
from grpo_jax.sharding import batch_sharding, make_mesh
from grpo_jax.types import Prompts

SETTINGS = dataclasses.replace(CFG, kl_weight=0.0, technique="sft", aggregation="token")


def main(out: str, *meshes: str) -> None:
  rng, found = np.random.default_rng(0), {}
  mask = np.arange(6) >= rng.integers(0, 5, (8, 1))
  prompts = Prompts(rng.integers(0, 64, (8, 6)).astype(np.int32), mask, np.arange(8))
  answers = [rng.integers(0, 64, rng.integers(1, 6)).tolist() for _ in range(8)]
  for text in meshes:
    mesh = make_mesh(text)
    update = update_program(CONFIG, mesh, TX, SETTINGS)
    rollout = demonstration_rollout(prompts, answers, SETTINGS.sampling)
    rollout = jax.device_put(rollout, batch_sharding(mesh))
    state, metrics, _, _ = grpo_step(
      first_state(mesh),
      rollout.prompts,
      collect=lambda state, prompts, rollout=rollout: (rollout, np.ones((8, 1), np.float32)),
      update=update,
      settings=SETTINGS,
    )
    found |= {
      f"{text}/gradient": ravel_pytree(jax.device_get(state.opt_state[0].trace))[0],
      f"{text}/metrics": np.array([float(metrics[name]) for name in sorted(metrics)]),
    }
  np.savez(out, **found)


if __name__ == "__main__":
  main(*sys.argv[1:])
