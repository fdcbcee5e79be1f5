"""Assembles a plan: memory, FLOPs and communication of a step, and the largest batch that fits."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

from jax.sharding import Mesh

from grpo_jax.planner import arithmetic
from grpo_jax.planner.arithmetic import Caches, Phase, Resident
from grpo_jax.planner.compiled import Program, compile_sample, compile_update
from grpo_jax.planner.flops import count_flops
from grpo_jax.planner.job import Job, trace_reference, trace_sample, trace_update
from grpo_jax.planner.topology import Topology

# Of a chip's memory, what programs can have: libtpu keeps 0.25 GiB of v5e's 16 for itself, and
# JAX on GPUs takes three quarters unless told otherwise.
TPU_RESERVED_BYTES = 1 << 28
GPU_SHARE = 0.75
GPU_SHARE_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # new, old
SHALLOW = (2, 4)


@dataclass(frozen=True)
class Plan:
  """Everything that the report shows, for one device.

  Attributes:
    job: what was planned.
    topology: for which machine.
    resident: bytes held through the whole run.
    caches: bytes of the sampler's keys and values.
    estimated: the peaks of temporaries of sampling and update, by arithmetic, caches included.
    limit: bytes that programs can have.
    programs: what the compiler says of sampling and update; empty without a compiler.
    phases: prefill, decode and update.
    largest: most prompts in sampling and most in one backward pass; 0 when not even one fits a
      device; None when it was not asked for.
  """

  job: Job
  topology: Topology
  resident: Resident
  caches: Caches
  estimated: tuple[float, float]
  limit: float
  programs: tuple[Program, ...]
  phases: dict[str, Phase]
  largest: tuple[int, int] | None

  @property
  def sampling_bytes(self) -> float:
    """A device's memory while it samples; the optimizer waits beside the program."""
    if not self.programs:
      return self.resident.total + self.estimated[0]
    return self.resident.optimizer + self.resident.reference + self.programs[0].total

  @property
  def update_bytes(self) -> float:
    """A device's memory while it updates."""
    if not self.programs:
      return self.resident.total + self.estimated[1]
    return self.resident.reference + self.programs[1].total

  @property
  def fits(self) -> bool:
    """Both programs fit the device."""
    return max(self.sampling_bytes, self.update_bytes) <= self.limit

  def seconds(self, name: str) -> dict[str, float]:
    """The least time of a phase by each limit: arithmetic, memory, links."""
    chip, phase = self.topology.chip, self.phases[name]
    # Float32 products run as several bfloat16 ones, at best half as fast.
    peak = chip.per_device(chip.flops) * (1 if self.job.config.dtype != "float32" else 0.5)
    return {
      "compute": phase.flops / peak,
      "memory": phase.hbm_bytes / chip.per_device(chip.hbm_bandwidth),
      "links": phase.sent_bytes / chip.per_device(chip.link_bandwidth),
    }

  @property
  def step_seconds(self) -> float:
    """The roofline of a step: its phases follow each other, each as fast as its tightest limit."""
    return sum(max(self.seconds(name).values()) for name in self.phases)


def make_plan(
  job: Job,
  topology: Topology,
  *,
  largest: bool = True,
  log: Callable[[str], None] = lambda line: None,
) -> Plan:
  """Plans one step.

  Args:
    job: what to plan; with a `Mesh` its programs are compiled, with an `AbstractMesh` they are
      traced, and memory and messages are estimated by arithmetic.
    topology: the machine.
    largest: find the largest batch that fits, which takes some more small compilations.
    log: told what is being done.
  """
  programs: tuple[Program, ...] = ()
  if isinstance(job.mesh, Mesh):
    log("compiling the sampling and the update program")
    programs = compile_sample(job), compile_update(job)
  plan = Plan(
    job,
    topology,
    arithmetic.resident(job),
    arithmetic.caches(job),
    arithmetic.temporaries(job),
    usable_bytes(topology),
    programs,
    _phases(job, programs),
    largest=None,
  )
  if not largest:
    return plan
  log("looking for the largest batch")
  # Bytes of a device with one and with two prompts on it, in sampling and in a backward pass.
  one, two = (_peaks(job.with_prompts(prompts * job.parts)) for prompts in (1, 2))
  found = (
    _most(plan.sampling_bytes, two[0] - one[0], plan.limit, job.prompts_per_step, job.parts),
    _most(plan.update_bytes, two[1] - one[1], plan.limit, job.micro_batch, job.parts),
  )
  return dataclasses.replace(plan, largest=found)


def usable_bytes(topology: Topology) -> float:
  """Bytes of one device that programs can have."""
  chip = topology.chip
  if chip.platform == "tpu":
    return chip.per_device(chip.hbm_bytes) - TPU_RESERVED_BYTES
  return gpu_share() * chip.hbm_bytes


def gpu_share() -> float:
  """The share of a GPU's memory that JAX takes, as the environment tells it.

  Raises:
    ValueError: the environment says something else than a positive number.
  """
  for name in GPU_SHARE_VARIABLES:
    if told := os.environ.get(name):
      with contextlib.suppress(ValueError):
        if 0 < float(told) < math.inf:
          return float(told)
      raise ValueError(f"{name}={told}: expected a positive number, the share that JAX takes")
  return GPU_SHARE


def _phases(job: Job, programs: tuple[Program, ...]) -> dict[str, Phase]:
  devices = job.mesh.size
  sampling = trace_sample(job).jaxpr
  prefill = count_flops(sampling, while_trips=0) / devices
  both = count_flops(sampling, while_trips=job.completion_tokens - 1) / devices
  traced = [trace_update(job), *([trace_reference(job)] if job.grpo.kl_weight else [])]
  update_flops = sum(
    count_flops(program.jaxpr, while_trips=job.prompts_per_step) / devices for program in traced
  )
  sent = arithmetic.sent_by_fsdp(job)
  if programs and not any(program.refused for program in programs):
    sampled, updated = programs
    sent = sampled.sent_before, sampled.sent_bytes - sampled.sent_before, updated.sent_bytes
  return {
    "prefill": arithmetic.prefill_phase(job, prefill, sent[0]),
    "decode": arithmetic.decode_phase(job, both - prefill, sent[1]),
    "update": arithmetic.update_phase(job, update_flops, sent[2]),
  }


def _peaks(job: Job) -> tuple[float, float]:
  """Peak bytes of a device, up to a constant, in sampling and in update."""
  if not isinstance(job.mesh, Mesh):
    return arithmetic.temporaries(job)
  return extrapolated_bytes(compile_sample, job), extrapolated_bytes(compile_update, job)


def extrapolated_bytes(build: Callable[[Job], Program], job: Job) -> float:
  """Bytes of a device that a program needs.

  Of a deep decoder they lie on the line through two shallow ones, which compile in less time.
  Layers are alike, so each adds the same arguments. Temporaries add up likewise as long as their
  peak lies at the same place in the program.
  """
  layers, (few, more) = job.config.num_layers, SHALLOW
  if layers <= more:
    return build(job).total
  small, large = (build(job.with_layers(depth)).total for depth in SHALLOW)
  return small + (large - small) * (layers - few) / (more - few)


def _most(used: float, slope: float, limit: float, prompts: int, parts: int) -> int:
  """Prompts that fit, a multiple of the parts, on the line through what is used now."""
  local = prompts / parts + (limit - used) / slope
  return max(0, int(local + 1e-9)) * parts
