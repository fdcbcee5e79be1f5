"""A plan as text, as a JSON record, and several records as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.models.parameters import parameter_count
from grpo_jax.planner.compiled import Program
from grpo_jax.planner.plan import Plan
from grpo_jax.report.tables import Row, as_text
from grpo_jax.report.templates import TEMPLATES

GIB = 2**30


def describe(plan: Plan) -> str:
  """The whole report; every size is of one device."""
  tables = [_memory(plan), _phases(plan)]
  if plan.programs:
    tables.append(_collectives(*plan.programs))
  return TEMPLATES.get_template("plan.txt.j2").render(
    plan=plan,
    parameters=parameter_count(plan.job.config),
    mesh=",".join(f"{axis}:{size}" for axis, size in plan.job.mesh.shape.items()),
    tables=[as_text(header, rows, grouped=False, numbers=True) for header, *rows in tables],
    gib=GIB,
  )


def as_record(plan: Plan) -> dict[str, Any]:
  """The same numbers for a JSON file: bytes, operations and seconds of one device."""
  record: dict[str, Any] = {
    "topology": plan.topology.text,
    "mesh": dict(plan.job.mesh.shape),
    "parameters": parameter_count(plan.job.config),
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
  for program in plan.programs:
    record[program.name] = {k: v for k, v in vars(program).items() if k != "instructions"}
  return record


def plan_rows(records: Sequence[Mapping[str, Any]]) -> tuple[Row, list[Row]]:
  """A header and a row for each of several plans; memory in GiB of one device.

  Args:
    records: of `as_record`, each with the `settings` of `experiments/plan.py`.
  """
  cells = [_cells(record) for record in records]
  header = tuple(name for name in cells[0] if any(row[name] for row in cells))  # no empty column
  return header, [tuple(row[name] for name in header) for row in cells]


def _cells(record: Mapping[str, Any]) -> dict[str, str]:
  settings = record["settings"]["config"]
  rank = settings["lora_rank"]
  gib = lambda size: f"{size / GIB:.1f}"
  seconds = [record[name]["seconds"] for name in ("sample", "update") if name in record]
  largest = ""
  if "largest_prompts_per_step" in record:
    largest = "{largest_prompts_per_step} / {largest_micro_batch_prompts}".format_map(record)
  # Of a program that the compiler refuses there is what it says that it would use.
  return {
    "model": f"{settings['model']} ({record['parameters'] / 1e9:.1f}B)",
    "trained": f"LoRA {rank}" if rank else "full",
    "optimizer": "" if settings["optimizer"] == "adamw" else settings["optimizer"],
    "machine": record["topology"],
    "mesh": ",".join(f"{axis}:{size}" for axis, size in record["mesh"].items() if size > 1),
    "state": gib(sum(record["resident_bytes"].values())),
    "sampling": gib(record["sampling_bytes"]),
    "update": gib(record["update_bytes"]),
    "there is": gib(record["limit_bytes"]),
    "fits": "yes" if record["fits"] else "**no**",
    "most prompts: sampled / in a backward pass": largest,
    "step at least": f"{record['step_seconds']:.1f} s",
    "CPU time to compile": " + ".join(f"{s:.0f}" for s in seconds) + " s" * bool(seconds),
  }


def _memory(plan: Plan) -> list[Row]:
  held, gib = plan.resident, lambda sizes: [f"{size / GIB:.2f}" for size in sizes]
  rows = [
    ("GiB of a device", "sample", "update"),
    ("trained parameters, float32", *gib([held.parameters] * 2)),
    (f"optimizer ({plan.job.optimizer.optimizer})", *gib([held.optimizer] * 2)),
  ]
  if held.base:
    rows.append((f"frozen base, {plan.job.config.dtype}", *gib([held.base] * 2)))
  if held.reference:
    rows.append(("reference policy", *gib([held.reference] * 2)))
  if plan.programs:
    rows.append(("rest of arguments, results, code", *gib(_rest(plan, p) for p in plan.programs)))
    rows.append(("temporary", *gib(program.temporary for program in plan.programs)))
  else:
    rows.append(("temporary, estimated", *gib(plan.estimated)))
  rows.append(("- of it key/value caches", *gib([sum(plan.caches)]), ""))
  rows.append(("together", *gib([plan.sampling_bytes, plan.update_bytes])))
  rows.append(("there is", *gib([plan.limit] * 2)))
  if plan.programs:
    rows.append(("(temporary, by arithmetic)", *gib(plan.estimated)))
    rows.append(("(CPU time to compile)", *(f"{p.seconds:.0f} s" for p in plan.programs)))
  return rows


def _rest(plan: Plan, program: Program) -> float:
  """What a program's sizes hold beside its temporaries and what is resident."""
  if program.refused:
    return 0.0
  held = plan.resident
  inside = held.total if program.name == "update" else held.parameters + held.base
  return program.total - program.temporary - inside


def _phases(plan: Plan) -> list[Row]:
  rows: list[Row] = [
    ("phase", "TFLOP", "GB moved", "GB sent", "compute s", "memory s", "links s", "bound by")
  ]
  for name, phase in plan.phases.items():
    seconds = plan.seconds(name)
    work = [f"{phase.flops / 1e12:.2f}"]
    work += [f"{size / 1e9:.1f}" for size in (phase.hbm_bytes, phase.sent_bytes)]
    times = (f"{value:.3f}" for value in seconds.values())
    rows.append((name, *work, *times, max(seconds, key=seconds.__getitem__)))
  return rows


def _collectives(sample: Program, update: Program) -> list[Row]:
  rows: list[Row] = [("collective", "in sampling", "GB sent", "in update", "GB sent")]
  for kind in sorted(sample.sent.keys() | update.sent.keys()):
    found = [program.sent.get(kind, (0, 0.0)) for program in (sample, update)]
    cells = [(str(runs), f"{sent / 1e9:.2f}") for runs, sent in found]
    rows.append((kind, *cells[0], *cells[1]))
  return rows
