"""Plans compiled for 8 CPU devices, as JSON; `test_plan.py` runs this file.

The number of devices is settled when JAX starts, so this needs a process of its own.
"""

from __future__ import annotations

import json
import os
import re

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

from grpo_jax.grpo import GRPOConfig
from grpo_jax.models import DecoderConfig
from grpo_jax.planner import Job, make_plan, parse_topology
from grpo_jax.planner.report import as_record
from grpo_jax.sampling import SamplingConfig
from grpo_jax.sharding import make_mesh

# Sides that no two things share, so that a shape says what it is; P = 16 in two micro-batches.
CONFIG = DecoderConfig(512, 128, 192, 3, 4, 2, 32)
GRPO = GRPOConfig(
  sampling=SamplingConfig(group_size=4, max_tokens=9), micro_batch_prompts=8, remat=True
)


def plan_of(mesh: str) -> dict:
  job = Job(CONFIG, make_mesh(mesh), GRPO, 16, 40)
  machine = parse_topology("v5e:2x4")
  plan = make_plan(job, machine, largest=False)
  found = as_record(plan)
  shapes = [one for p in (plan.sample, plan.update) for one in p.instructions]
  found["weights_gathered"] = any(
    one.kind == "all-gather" and "[128,192]" in one.result for one in shapes
  )
  # Floating-point arrays with a whole (micro-)batch in front and a token axis behind it.
  batch = re.compile(r"(?:f32|bf16)\[(?:16|8),(?:40|4|72|32),")
  found["batch_moved"] = [
    f"{one.kind} {one.result} {one.where}"
    for one in shapes
    if one.kind in ("all-gather", "all-reduce") and batch.search(one.result)
  ]
  if mesh == "fsdp:8":
    line = make_plan(job, machine, depths=(1, 2), largest=False)
    found |= {f"{name}_extrapolated": as_record(line)[name] for name in ("sample", "update")}
  return found


if __name__ == "__main__":
  print(json.dumps({mesh: plan_of(mesh) for mesh in ("fsdp:8", "fsdp:4,tensor:2")}))
