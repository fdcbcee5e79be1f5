"""Ahead-of-time compilation of a step's programs, and what the compiler reports of them."""

import functools
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from grpo_jax.planner.flops import count_flops
from grpo_jax.planner.hlo import Collective, by_kind, collectives
from grpo_jax.planner.job import Job, trace_sample, trace_update

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Program:
  """What the compiler says about one program, for one device.

  Attributes:
    name: `sample` or `update`.
    seconds: of CPU time spent compiling, all threads; what else the machine does hardly changes it.
    arguments: bytes of arguments.
    outputs: bytes of results that are not written over arguments.
    temporary: bytes of temporaries, at their peak.
    code: bytes of the program itself.
    xla_flops: of XLA's cost analysis, which counts a loop's body once.
    once_flops: products in the traced program, a loop's body counted once, all devices.
    xla_bytes: memory traffic by the same analysis.
    sent: executions and sent bytes of each kind of collective.
    sent_before: bytes sent outside loops of unknown length (by the sampler: before decoding).
    instructions: every collective.
    refused: the compiler's sentence when the program does not fit the device; sizes are then those
      that it gives, all under `temporary`.
  """

  name: str
  seconds: float
  arguments: int
  outputs: int
  temporary: int
  code: int = 0
  xla_flops: float = 0.0
  once_flops: float = 0.0
  xla_bytes: float = 0.0
  sent: Mapping[str, tuple[int, float]] = field(default_factory=dict)
  sent_before: float = 0.0
  instructions: tuple[Collective, ...] = ()
  refused: str = ""

  @property
  def total(self) -> int:
    """Bytes of a device that the program needs while it runs."""
    return self.arguments + self.outputs + self.temporary + self.code

  @property
  def sent_bytes(self) -> float:
    """Bytes that a device sends to others."""
    return sum(sent for _, sent in self.sent.values())

  @property
  def repeated_work(self) -> float:
    """FLOPs of a device over its even share; above 1, devices repeat each other's work."""
    return self.xla_flops / self.once_flops if self.once_flops else 0.0


@functools.cache  # the search for the largest batch asks again
def compile_sample(job: Job) -> Program:
  """Compiles the sampling program; the decoding loop is taken to run to its end."""
  return _compiled("sample", trace_sample(job), job, job.completion_tokens - 1)


@functools.cache
def compile_update(job: Job) -> Program:
  """Compiles the update program."""
  return _compiled("update", trace_update(job), job, 1)


def _compiled(name: str, traced: Any, job: Job, unknown_trips: int) -> Program:
  lowered = traced.lower()
  began = time.process_time()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    used = memory_asked_for(str(error))
    if used is None:
      raise
    seconds = time.process_time() - began
    return Program(name, seconds, 0, 0, used, refused=_sentence(str(error)))
  seconds = time.process_time() - began
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  once = count_flops(traced.jaxpr, while_trips=1, scan_trips=1) / job.mesh.size
  text = compiled.as_text()
  found = lambda trips: collectives(text, devices=job.mesh.size, unknown_trips=trips)
  instructions = found(unknown_trips)
  return Program(
    name,
    seconds,
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes - memory.alias_size_in_bytes,
    memory.temp_size_in_bytes,
    memory.generated_code_size_in_bytes,
    xla_flops=cost.get("flops", 0.0),
    once_flops=once,
    xla_bytes=cost.get("bytes accessed", 0.0),
    sent=by_kind(instructions),
    sent_before=sum(one.sent_bytes for one in found(0)),
    instructions=tuple(instructions),
  )


def memory_asked_for(message: str) -> int | None:
  """The bytes that a program would use, from the TPU compiler's refusal; None for other errors."""
  used = r"Used ([\d.]+)([BKMGT]) of [\d.]+[BKMGT] hbm"
  alone = r"HLO temporaries \(([\d.]+)([BKMGT])\) exceeds"  # when these are already too much
  found = re.search(used, message) or re.search(alone, message)
  return int(float(found[1]) * _UNITS[found[2]]) if found else None


def _sentence(message: str) -> str:
  found = re.search(r"(Used [^\n]* hbm\.|the total memory required)[^\n]*", message)
  return found[0].strip() if found else message.splitlines()[0]
