"""One GRPO step on adapters on several meshes, for `test_lora_run.py`, which runs this file.

python lora_mesh_step.py OUT.npz MESH...
"""

from __future__ import annotations

import sys

from mesh_step import CONFIG, TX, first_state, share_on_a_device, step_on

import jax  # isort: skip  # mesh_step, a script beside this one, settles the devices first
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from grpo_jax.models import LoraConfig, init_adapters
from grpo_jax.sharding import make_mesh, state_shardings
from grpo_jax.types import TrainState

LORA = LoraConfig(4, 8.0)


def main(out: str, *meshes: str) -> None:
  found = {}
  for text in meshes:
    mesh = make_mesh(text)
    base = first_state(mesh).params
    adapters = jax.tree.map(lambda x: x + 0.1, init_adapters(CONFIG, LORA, jax.random.key(2)))
    state = TrainState(adapters, TX.init(adapters), jnp.int32(0), jax.random.key(1))
    state = jax.device_put(state, state_shardings(CONFIG, mesh, state))
    rollout, state, metrics = step_on(mesh, state, base, base, LORA)
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
