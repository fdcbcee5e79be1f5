"""Sampling in segments on meshes of 8 CPU devices, in one process or as one of two hosts.

    python mesh_segments.py DEVICES "MESH MESH.." [HOST:PORT PROCESS]

Prints as JSON, for each mesh, tokens and log-probs of one program and of segments, the segments'
shapes, and which messages the devices send while they gather and while they decode.
"""

from __future__ import annotations

import json
import os
import re
import sys

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "64"  # see mesh_step.py

import jax
import numpy as np
from jax.sharding import Mesh

from grpo_jax.models import DecoderConfig, init_params, is_matrix
from grpo_jax.runs import hosts
from grpo_jax.sampling import SampleProgram, SamplingConfig, generate
from grpo_jax.sharding import batch_sharding, make_mesh, state_shardings
from grpo_jax.types import Prompts

CONFIG = DecoderConfig(64, 32, 48, 2, 4, 2, 8)
SAMPLING = SamplingConfig(group_size=2, max_tokens=12, stop_ids=tuple(range(14)))
P, S = 16, 6


def policy(key):
  larger = lambda path, x: 10 * x if is_matrix(path) else x
  return jax.tree_util.tree_map_with_path(larger, init_params(CONFIG, key))


def some_prompts() -> Prompts:
  rng = np.random.default_rng(0)
  mask = np.arange(S) >= rng.integers(0, S - 1, (P, 1))
  return Prompts(rng.integers(0, 64, (P, S)).astype(np.int32), mask, np.arange(P, dtype=np.int32))


def sampled_on(mesh: Mesh, params) -> dict:
  prompts, key = jax.device_put(some_prompts(), batch_sharding(mesh)), jax.random.key(0)
  found: dict = {}
  for name, worth in {"whole": float("inf"), "segments": 1.0}.items():
    program = SampleProgram(CONFIG, mesh, SAMPLING, worth=worth)
    rollout, segments = program.run(params, None, prompts, key)
    tokens, logp = hosts.fetch((rollout.tokens, rollout.logp))
    found[name] = {"tokens": tokens.tolist(), "logp": logp.tolist(), "shapes": segments}
  return found


def messages_on(mesh: Mesh, params) -> dict:
  """The collectives of the compiled programs."""
  program = SampleProgram(CONFIG, mesh, SAMPLING)
  prompts = jax.device_put(some_prompts(), batch_sharding(mesh))
  state = program._begin(params, None, prompts, jax.random.key(0))
  sent = lambda lowered: re.findall(
    r"(?:all|collective|reduce)-[a-z]+(?=\()", lowered.compile().as_text()
  )
  cut = lambda *shape: sent(SampleProgram._compact.lower(program, state, state.drawn, *shape))
  arguments = (program, program.weights(params, None), state, *program._limits())
  return {
    "gathering": cut(P, 1) + cut(P // 2, 2),
    "decoding": sent(SampleProgram._decode.lower(*arguments)),
  }


def main(meshes: str, coordinator: str = "", process: str = "") -> None:
  if coordinator:
    hosts.initialize(coordinator, 2, int(process))
  found: dict = {}
  for text in meshes.split():
    mesh = make_mesh(text)
    placed = state_shardings(CONFIG, mesh, jax.eval_shape(policy, jax.random.key(0)))
    params = jax.jit(policy, out_shardings=placed)(jax.random.key(0))
    found[text] = sampled_on(mesh, params)
    if not coordinator:
      found[text]["sent"] = messages_on(mesh, params)
  # As a run evaluates: weights split over the devices, prompts on the host.
  prompts = some_prompts()
  rows = [row[real].tolist() for row, real in zip(prompts.tokens, prompts.mask, strict=True)]
  options = {"group_size": 2, "max_tokens": 12, "stop_ids": SAMPLING.stop_ids}
  found["generate"] = generate(CONFIG, params, rows, **options)
  print(json.dumps(found))


if __name__ == "__main__":
  main(*sys.argv[2:])
