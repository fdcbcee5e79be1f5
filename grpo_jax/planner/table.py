"""Several plans side by side: one row each, from the records that `report.as_record` makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.planner.report import GIB
from grpo_jax.report.tables import Row


def plan_rows(records: Sequence[Mapping[str, Any]]) -> tuple[Row, list[Row]]:
  """A header and a row for each plan; memory in GiB of one device.

  Args:
    records: of `report.as_record`, each with the `settings` of `experiments/plan.py`.
  """
  cells = [_cells(record) for record in records]
  header = tuple(name for name in cells[0] if any(row[name] for row in cells))  # no empty column
  return header, [tuple(row[name] for name in header) for row in cells]


def _cells(record: Mapping[str, Any]) -> dict[str, str]:
  settings = record["settings"]["config"]
  rank = settings["lora_rank"]
  gib = lambda size: f"{size / GIB:.1f}"
  programs = [record[name] for name in ("sample", "update") if name in record]
  seconds = " + ".join(f"{program['seconds']:.0f}" for program in programs)
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
    "CPU time to compile": f"{seconds} s" if seconds else "",
  }
