"""A plan as text for people and as a dictionary for files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_jax.models.parameters import parameter_count
from grpo_jax.planner.compiled import Program
from grpo_jax.planner.plan import Plan
from grpo_jax.sharding import mesh_text

GIB = 2**30


def describe(plan: Plan) -> str:
  """The whole report; every size is of one device."""
  parts = [_heading(plan), _memory(plan), _phases(plan)]
  if plan.sample is not None and plan.update is not None:
    parts.append(_collectives(plan.sample, plan.update))
  return "\n\n".join([*parts, "\n".join(_verdict(plan))])


def as_record(plan: Plan) -> dict[str, Any]:
  """The same numbers for a JSON file: bytes, operations and seconds of one device."""
  job = plan.job
  record: dict[str, Any] = {
    "topology": plan.topology.text,
    "mesh": dict(mesh_text(job.mesh)),
    "parameters": parameter_count(job.policy),
    "resident_bytes": plan.resident._asdict(),
    "cache_bytes": plan.caches._asdict(),
    "sampling_bytes": plan.sampling_bytes,
    "update_bytes": plan.update_bytes,
    "limit_bytes": plan.limit,
    "fits": plan.fits,
    "phases": {
      name: {**phase._asdict(), "seconds": plan.seconds(name)}
      for name, phase in plan.phases.items()
    },
    "step_seconds": plan.step_seconds,
    "estimated_temporaries": plan.estimated,
  }
  if plan.largest is not None:
    record["largest_prompts_per_step"], record["largest_micro_batch_prompts"] = plan.largest
  for program in filter(None, (plan.sample, plan.update)):
    fields = {k: v for k, v in vars(program).items() if k != "instructions"}
    record[program.name] = fields
  return record


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Columns for a terminal, the first one to the left and numbers to the right."""
  widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
  line = lambda row: "  ".join(
    cell.rjust(width) if column else cell.ljust(width)
    for column, (cell, width) in enumerate(zip(row, widths, strict=True))
  )
  return "\n".join(line(row).rstrip() for row in (header, ["-" * w for w in widths], *rows))


def _heading(plan: Plan) -> str:
  job, chip = plan.job, plan.topology.chip
  mesh = ",".join(f"{axis}:{size}" for axis, size in mesh_text(job.mesh).items())
  micro = f"{job.micro_batch} prompts in a backward pass"
  lora = f", adapters of rank {job.lora.rank}" if job.lora else ""
  lines = [
    f"{parameter_count(job.policy) / 1e9:.2f}B parameters{lora}, {job.policy.dtype}, on "
    f"{plan.topology.text} ({plan.topology.num_devices} devices), mesh {mesh}",
    f"{job.prompts_per_step} prompts x {job.group} candidates, {job.prompt_tokens} + "
    f"{job.completion_tokens} tokens, {micro}, remat={job.grpo.remat}",
    f"a device: {chip.per_device(chip.hbm_bytes) / GIB:.1f} GiB, "
    f"{chip.per_device(chip.flops) / 1e12:.0f} TFLOP/s, "
    f"{chip.per_device(chip.hbm_bandwidth) / 1e9:.0f} GB/s to memory, "
    f"{chip.per_device(chip.link_bandwidth) / 1e9:.0f} GB/s to others ({chip.source})",
  ]
  if chip.platform == "gpu":
    lines.append(
      f"JAX takes {plan.limit / chip.hbm_bytes:.0%} of a GPU's memory (set "
      "XLA_CLIENT_MEM_FRACTION, here and in training, to change it)"
    )
  if plan.sample is None:
    lines.append("memory and messages are arithmetic: without such a device nothing is compiled")
  return "\n".join(lines)


def _memory(plan: Plan) -> str:
  held, gib = plan.resident, lambda size: f"{size / GIB:.2f}"
  rows = [
    ["trained parameters, float32", gib(held.parameters), gib(held.parameters)],
    [f"optimizer ({plan.job.optimizer.optimizer})", gib(held.optimizer), gib(held.optimizer)],
  ]
  if held.base:
    rows.append([f"frozen base, {plan.job.policy.dtype}", gib(held.base), gib(held.base)])
  if held.reference:
    rows.append(["reference policy", gib(held.reference), gib(held.reference)])
  both = plan.sample, plan.update
  names = ("sample", "update")
  if all(program is None for program in both):
    rows.append(["temporary, estimated", *(gib(size) for size in plan.estimated)])
  else:
    rows.append(["rest of arguments, results, code", *(gib(_rest(plan, p)) for p in both)])
    rows.append(["temporary", *(gib(p.temporary if p else 0) for p in both)])
  rows.append(["- of it key/value caches", gib(sum(plan.caches)), ""])
  rows.append(["together", gib(plan.sampling_bytes), gib(plan.update_bytes)])
  rows.append(["there is", gib(plan.limit), gib(plan.limit)])
  if plan.sample is not None:
    rows.append(["(temporary, by arithmetic)", *(gib(size) for size in plan.estimated)])
    rows.append(["(CPU time to compile)", *(f"{p.seconds:.0f} s" if p else "" for p in both)])
  return _table(["GiB of a device", *names], rows)


def _rest(plan: Plan, program: Program | None) -> float:
  """What a program's sizes hold beside its temporaries and what is resident."""
  if program is None or program.refused:
    return 0.0
  inside = plan.resident.parameters + plan.resident.base
  if program.name == "update":
    inside = plan.resident.total
  return program.total - program.temporary - inside


def _phases(plan: Plan) -> str:
  rows = []
  for name, phase in plan.phases.items():
    seconds = plan.seconds(name)
    tightest = max(seconds, key=lambda limit: seconds[limit])
    rows.append(
      [
        name,
        f"{phase.flops / 1e12:.2f}",
        f"{phase.hbm_bytes / 1e9:.1f}",
        f"{phase.sent_bytes / 1e9:.1f}",
        *(f"{seconds[limit]:.3f}" for limit in ("compute", "memory", "links")),
        tightest,
      ]
    )
  header = ["phase", "TFLOP", "GB moved", "GB sent", "compute s", "memory s", "links s", "bound by"]
  return _table(header, rows)


def _collectives(sample: Program, update: Program) -> str:
  kinds = sorted(sample.sent.keys() | update.sent.keys())
  cell = lambda program, kind: program.sent.get(kind, (0, 0.0))
  rows = [
    [
      kind,
      str(cell(sample, kind)[0]),
      f"{cell(sample, kind)[1] / 1e9:.2f}",
      str(cell(update, kind)[0]),
      f"{cell(update, kind)[1] / 1e9:.2f}",
    ]
    for kind in kinds
  ]
  return _table(["collective", "in sampling", "GB sent", "in update", "GB sent"], rows)


def _verdict(plan: Plan) -> list[str]:
  lines = []
  for program in filter(None, (plan.sample, plan.update)):
    if program.refused:
      lines.append(f"the compiler refuses the {program.name} program: {program.refused}")
    elif program.repeated_work > 1.5:
      lines.append(
        f"the {program.name} program computes {program.repeated_work:.1f} times a device's share: "
        "some of its work is repeated on several devices"
      )
  if plan.job.micro_batch % plan.job.parts:
    lines.append(
      f"--micro_batch_prompts={plan.job.micro_batch} leaves devices idle or repeating each other: "
      f"the mesh splits prompts into {plan.job.parts} parts"
    )
  lines.append(f"a step takes at least {plan.step_seconds:.2f} s (its roofline; no run reaches it)")
  if plan.largest is not None:
    lines.append(
      f"largest that fits: --prompts_per_step={plan.largest[0]} in sampling, "
      f"--micro_batch_prompts={plan.largest[1]} in a backward pass"
    )
  lines.append("it FITS" if plan.fits else "it does NOT fit")
  return lines
