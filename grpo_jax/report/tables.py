"""Before and after as a table: one row for each split and behaviour, as text or Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.tasks.schema import BEHAVIORS

Row = tuple[str, ...]


def score_rows(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[Row, list[Row]]:
  """The header and rows of one evaluation: mean reward with its interval.

  Args:
    summaries: by split, what `scores.summarise` returns.
  """
  header: Row = ("split", "behaviour", "tasks", "reward [95% interval]")
  rows: list[Row] = []
  for split, summary in summaries.items():
    for label, found in _lines(summary):
      rows.append((split, label, str(found["n"]), _value(found["mean"], found["ci95"])))
  return header, rows


def gain_rows(
  base: Mapping[str, Mapping[str, Any]],
  final: Mapping[str, Mapping[str, Any]],
  comparisons: Mapping[str, Mapping[str, Any]],
) -> tuple[Row, list[Row]]:
  """The header and rows of a comparison: before, after, difference and relative gain.

  Args:
    base: by split, what `scores.summarise` returns, before.
    final: the same, after.
    comparisons: by split, what `scores.compare` returns; a split without one gets no difference.
  """
  header: Row = (
    "split", "behaviour", "tasks", "before [95% interval]", "after [95% interval]",
    "difference [95%]", "relative gain [95%]",
  )  # fmt: skip
  rows: list[Row] = []
  for split in base:
    if split not in final:
      continue
    after = dict(_lines(final[split]))
    for label, found in _lines(base[split]):
      if label not in after:
        continue
      compared = comparisons.get(split, {})
      if label != "all":
        compared = compared.get("by_behavior", {}).get(label, {})
      rows.append(
        (
          split,
          label,
          str(found["n"]),
          _value(found["mean"], found["ci95"]),
          _value(after[label]["mean"], after[label]["ci95"]),
          _difference(compared),
          _gain(compared),
        )
      )
  return header, rows


def as_text(header: Row, rows: Sequence[Row], *, grouped: bool = True) -> str:
  """The table in columns, for a terminal; `grouped` parts rows whose first cells differ."""
  widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
  lines = ["  ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True))]
  lines.append("  ".join("-" * width for width in widths))
  previous = rows[0][0] if rows else ""
  for row in rows:
    if grouped and row[0] != previous:
      lines.append("")
    previous = row[0]
    lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
  return "\n".join(line.rstrip() for line in lines)


def as_markdown(header: Row, rows: Sequence[Row]) -> str:
  """The table in Markdown."""
  cells = [header, ("---",) * len(header), *rows]
  return "\n".join(
    "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells
  )


def _lines(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
  """The summary as lines of a table: all tasks, then each behaviour."""
  whole = {"mean": summary["reward_mean"], "ci95": summary["reward_ci95"], "n": summary["n"]}
  by_behavior = summary["by_behavior"]
  return [("all", whole), *((name, by_behavior[name]) for name in BEHAVIORS if name in by_behavior)]


def _value(mean: float, ci95: Sequence[float]) -> str:
  return f"{mean:.3f} [{ci95[0]:.3f}, {ci95[1]:.3f}]"


def _difference(compared: Mapping[str, Any]) -> str:
  if not compared:
    return "-"
  low, high = compared["difference_ci95"]
  return f"{compared['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _gain(compared: Mapping[str, Any]) -> str:
  if not compared or compared["relative_gain"] is None:
    return "-"
  low, high = compared["relative_gain_ci95"]
  return f"{compared['relative_gain']:+.0%} [{low:+.0%}, {high:+.0%}]"
