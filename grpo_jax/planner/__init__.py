"""Plans a GRPO step for hardware that is not at hand: memory, FLOPs, communication, time."""

from grpo_jax.planner.job import Job
from grpo_jax.planner.plan import Plan, gpu_share, make_plan
from grpo_jax.planner.report import describe
from grpo_jax.planner.topology import Topology, parse_topology, plan_mesh

__all__ = [
  "Job",
  "Plan",
  "Topology",
  "describe",
  "gpu_share",
  "make_plan",
  "parse_topology",
  "plan_mesh",
]
