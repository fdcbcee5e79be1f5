"""Plans compiled for 8 CPU devices, as JSON; `test_plan.py` runs this file.

The number of devices is settled when JAX starts, so this needs a process of its own.
"""

from __future__ import annotations

import json
import os
import re

os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

from grpo_jax.grpo import GRPOConfig
from grpo_jax.models import DecoderConfig
from grpo_jax.planner import Job
from grpo_jax.planner.arithmetic import resident
from grpo_jax.planner.compiled import Program, compile_sample, compile_update
from grpo_jax.planner.plan import extrapolated_bytes
from grpo_jax.sampling import SamplingConfig
from grpo_jax.sharding import make_mesh

# Sides that no two things share, so that a shape says what it is; P = 16 in two micro-batches.
CONFIG = DecoderConfig(512, 128, 192, 2, 4, 2, 32)
GRPO = GRPOConfig(
  sampling=SamplingConfig(group_size=4, max_tokens=9), micro_batch_prompts=8, remat="layers"
)


def numbers(program: Program) -> dict:
  return {name: value for name, value in vars(program).items() if name != "instructions"}


def plan_of(mesh: str) -> dict:
  job = Job(CONFIG, make_mesh(mesh), GRPO, 16, 40)
  sample, update = compile_sample(job), compile_update(job)
  shapes = [*sample.instructions, *update.instructions]
  # Floating-point arrays with a whole (micro-)batch in front and a token axis behind it. Looking
  # tokens up in a split embedding makes one: every token, but a slice of its width.
  batch = re.compile(r"(?:f32|bf16)\[(?:16|8),(?:40|4|72|32),")
  found = {
    "resident": resident(job)._asdict(),
    "sample": numbers(sample),
    "update": numbers(update),
    "weights_gathered": any(
      one.kind == "all-gather" and re.search(r"\[128,(192|96)\]", one.result) for one in shapes
    ),
    "batch_moved": [
      f"{one.kind} {one.result} {one.where}"
      for one in shapes
      if one.kind in ("all-gather", "all-reduce")
      and batch.search(one.result)
      and not re.search(r"\bembed\b", one.where)
    ],
  }
  if mesh == "fsdp:8":
    deep = job.with_layers(5)
    found["five"] = compile_update(deep).total
    found["line"] = extrapolated_bytes(compile_update, deep)
  return found


if __name__ == "__main__":
  print(json.dumps({mesh: plan_of(mesh) for mesh in ("fsdp:8", "fsdp:4,tensor:2")}))
