"""Several plans side by side: one row each, from the records that `report.as_record` makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.tables import Row

GIB = 2**30
HEADER: Row = (
  "model", "trained", "machine", "mesh", "state", "sampling", "update", "there is", "fits",
  "largest batch: sampling / backward pass", "step at least", "CPU time to compile",
)  # fmt: skip


def plan_rows(records: Sequence[Mapping[str, Any]]) -> tuple[Row, list[Row]]:
  """A header and a row for each plan; memory in GiB of one device.

  Args:
    records: of `report.as_record`, each with the `settings` of `experiments/plan.py`.
  """
  return HEADER, [_row(record) for record in records]


def _row(record: Mapping[str, Any]) -> Row:
  settings, held = record["settings"], record["resident_bytes"]
  programs = [record[name] for name in ("sample", "update") if name in record]
  gib = lambda size: f"{size / GIB:.1f}"
  # Of a program that the compiler refuses there is only what it says that it would use.
  need = lambda name: gib(record[f"{name}_bytes"])
  fits = "yes" if record["fits"] else "**no**"
  largest = "-"
  if "largest_prompts_per_step" in record:
    largest = "{largest_prompts_per_step} / {largest_micro_batch_prompts}".format_map(record)
  mesh = ",".join(f"{axis}:{size}" for axis, size in record["mesh"].items() if size > 1)
  seconds = " + ".join(f"{program['seconds']:.0f}" for program in programs)
  if seconds:
    seconds += " s" + (" (layers {},{})".format(*record["depths"]) if record["depths"] else "")
  return (
    f"{settings['model']} ({record['parameters'] / 1e9:.1f}B)",
    f"LoRA {settings['lora_rank']}" if settings["lora_rank"] else "full",
    record["topology"],
    mesh or "one device",
    gib(sum(held.values())),
    need("sampling"),
    need("update"),
    gib(record["limit_bytes"]),
    fits,
    largest,
    f"{record['step_seconds']:.1f} s",
    seconds or "-",
  )
