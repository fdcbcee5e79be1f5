"""Log-probs and gradients with plain attention and with attention in blocks, on 8 CPU devices.

`models/test_blockwise.py` runs this file, which writes the numbers and what a device sends:

    python block_mesh.py OUT.npz MESH
"""

from __future__ import annotations

import sys

from mesh_step import CONFIG, first_state

import jax  # isort: skip  # mesh_step, a script beside this one, settles the devices first
import numpy as np
from jax.flatten_util import ravel_pytree

from grpo_jax.models import attention, blockwise, completion_logprobs
from grpo_jax.planner.hlo import by_kind, collectives
from grpo_jax.sharding import batch_sharding, make_mesh, split_parameters

PROMPTS, GROUP, LENGTH, OWN = 8, 2, 13, 6


def main(out: str, text: str) -> None:
  mesh = make_mesh(text)
  params = first_state(mesh).params
  rng = np.random.default_rng(0)
  prompts, completions = (
    jax.device_put(rng.integers(0, CONFIG.vocab_size, shape).astype(np.int32), batch_sharding(mesh))
    for shape in ((PROMPTS, LENGTH), (PROMPTS, GROUP, OWN))
  )
  mask = jax.device_put(np.arange(LENGTH) >= rng.integers(0, 9, (PROMPTS, 1)), batch_sharding(mesh))
  weights = rng.normal(size=(PROMPTS, GROUP, OWN)).astype(np.float32)

  def run(params, prompts, mask, completions):
    def total(params):
      logp = completion_logprobs(CONFIG, params, prompts, mask, completions, remat="layers").logp
      return (logp * weights).sum(), logp

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      grads, logp = jax.grad(total, has_aux=True)(params)
      return logp, split_parameters(CONFIG, grads)

  blockwise.BLOCK_SCORES, attention.BLOCK_ROWS = 120, 4
  found = {}
  for name, limit in (("plain", blockwise.DENSE_SCORES), ("blocks", 0)):
    blockwise.DENSE_SCORES = limit
    jax.clear_caches()  # the limit is no argument
    compiled = jax.jit(run).lower(params, prompts, mask, completions).compile()
    logp, grads = jax.device_get(compiled(params, prompts, mask, completions))
    program = compiled.as_text()
    sent = by_kind(collectives(program, devices=mesh.size))
    found[f"{name}/logp"], found[f"{name}/gradient"] = logp, ravel_pytree(grads)[0]
    found[f"{name}/sent"] = np.array([sent[kind][1] for kind in sorted(sent)])
    found[f"{name}/loops"] = np.array(program.count(" while("))
  np.savez(out, **found)


if __name__ == "__main__":
  main(*sys.argv[1:])
