"""No compiled program holds a shared prompt once for each candidate, on CPU or on a TPU."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from grpo_jax.grpo import GRPOConfig
from grpo_jax.models import DecoderConfig, init_params, prefill
from grpo_jax.planner import Job, parse_topology, plan_mesh
from grpo_jax.planner.job import trace_sample, trace_update
from grpo_jax.sampling import SamplingConfig
from grpo_jax.sharding import make_mesh

ROOT = Path(__file__).parents[2]
# Each thing has a prime of its own, which stays in a side when axes are merged or split: an array
# that holds something of a prompt's tokens for each candidate has a multiple of G * S * its width.
G, S, T = 5, 37, 11
WIDTHS = {"head": 13, "hidden": 17, "mlp": 19, "vocabulary": 29}
POLICY = DecoderConfig(8 * 29, 8 * 17, 8 * 19, 2, 4, 2, 2 * 13, tie_embeddings=True)


def copies_of_prompts(hlo: str) -> list[str]:
  """The shapes in a compiled program's text that hold a prompt G times, and what of it."""
  found = set()
  for shape in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", hlo):
    size = math.prod(int(side) for side in shape.split(","))
    if size % (G * S) == 0:
      found |= {f"[{shape}]: {name}" for name, prime in WIDTHS.items() if size % prime == 0}
  return sorted(found)


def programs(mesh: str, topology: str = "") -> dict[str, str]:
  """The text of a step's two programs, by name; a third of the prompts in a backward pass."""
  where = plan_mesh(mesh, parse_topology(topology)) if topology else make_mesh(mesh)
  sampling = SamplingConfig(group_size=G, max_tokens=T)
  grpo = GRPOConfig(sampling=sampling, micro_batch_prompts=where.size)
  job = Job(POLICY, where, grpo, 3 * where.size, S)
  traced = {"sample": trace_sample(job), "update": trace_update(job)}
  return {name: program.lower().compile().as_text() for name, program in traced.items()}


def check(texts: dict[str, str]) -> None:
  for name, hlo in texts.items():
    assert re.search(rf"\[[\d,]*\b{S}\b[\d,]*\]", hlo), f"{name} has no prompt at all"
    assert copies_of_prompts(hlo) == [], name


def test_a_prompt_is_held_once_for_its_group():
  check(programs("data:1,fsdp:1,tensor:1"))


def test_a_repeated_prompt_would_be_seen():
  params = jax.eval_shape(lambda key: init_params(POLICY, key), jax.random.key(0))

  def repeated(params, tokens):
    rows = jnp.repeat(tokens, G, axis=0)
    return prefill(POLICY, params, rows, jnp.ones(rows.shape, bool))

  tokens = jax.ShapeDtypeStruct((3, S), jnp.int32)
  found = copies_of_prompts(jax.jit(repeated).lower(params, tokens).compile().as_text())
  assert {shape.rpartition(": ")[2] for shape in found} >= {"head", "hidden", "mlp"}


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="compiling for a TPU needs libtpu: pip install 'grpo_jax[plan]'",
)
@pytest.mark.parametrize("mesh", ["fsdp:8", "fsdp:4,tensor:2"])
def test_a_prompt_is_held_once_for_its_group_on_a_tpu(mesh):
  # In a process of its own, for libtpu ends the process when something is wrong.
  done = subprocess.run(
    [sys.executable, __file__, mesh, "v5e:2x4"], cwd=ROOT, capture_output=True, text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  check(json.loads(done.stdout))


if __name__ == "__main__":
  print(json.dumps(programs(*sys.argv[1:])))
