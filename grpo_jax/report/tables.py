"""Before and after as a table: one row for each split and behavior, as text or Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.tasks.schema import BEHAVIORS

Row = tuple[str, ...]


def score_rows(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[Row, list[Row]]:
  """The header and rows of one evaluation: mean reward with its interval.

  Args:
    summaries: by split, what `scores.summarize` returns.
  """
  rows: list[Row] = [
    (split, label, str(found["n"]), mean_text(found))
    for split, summary in summaries.items()
    for label, found in means_of(summary).items()
  ]
  return ("split", "behaviour", "tasks", "reward [95% interval]"), rows


def gain_rows(
  base: Mapping[str, Mapping[str, Any]],
  final: Mapping[str, Mapping[str, Any]],
  comparisons: Mapping[str, Mapping[str, Any]],
) -> tuple[Row, list[Row]]:
  """The header and rows of a comparison: before, after, difference and relative gain.

  Args:
    base: by split, what `scores.summarize` returns, before.
    final: the same, after.
    comparisons: by split, what `scores.compare` returns; a split without one gets no difference.
  """
  header: Row = (
    "split", "behaviour", "tasks", "before [95% interval]", "after [95% interval]",
    "difference [95%]", "relative gain [95%]",
  )  # fmt: skip
  rows: list[Row] = []
  for split in (split for split in base if split in final):
    before, after = means_of(base[split]), means_of(final[split])
    compared = comparisons.get(split, {})
    compared = {"all": compared, **compared.get("by_behavior", {})}
    for label in (label for label in before if label in after):
      means = (mean_text(found[label]) for found in (before, after))
      difference = compared.get(label, {})
      gains = interval_text(difference, "difference", "+.3f"), gain_text(difference)
      rows.append((split, label, str(before[label]["n"]), *means, *gains))
  return header, rows


def as_text(
  header: Row, rows: Sequence[Row], *, grouped: bool = True, numbers: bool = False
) -> str:
  """The table in columns, for a terminal.

  Args:
    header: the titles of the columns.
    rows: as many cells each.
    grouped: an empty line parts rows whose first cells differ.
    numbers: all columns but the first are numbers, which end at the right.
  """
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  formats = [f"{{:{'>' if numbers and column else '<'}{w}}}" for column, w in enumerate(widths)]
  line = lambda row: "  ".join(formats).format(*row).rstrip()
  lines = [line(header), line(["-" * width for width in widths])]
  for number, row in enumerate(rows):
    if grouped and number and row[0] != rows[number - 1][0]:
      lines.append("")
    lines.append(line(row))
  return "\n".join(lines)


def as_markdown(header: Row, rows: Sequence[Row]) -> str:
  """The table in Markdown."""
  cells = [header, ("---",) * len(header), *rows]
  return "\n".join(
    "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells
  )


def means_of(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """The mean, interval and number of all tasks of a summary and of each behavior, by name."""
  whole = {"mean": summary["reward_mean"], "ci95": summary["reward_ci95"], "n": summary["n"]}
  by_behavior = summary["by_behavior"]
  return {"all": whole} | {name: by_behavior[name] for name in BEHAVIORS if name in by_behavior}


def interval_text(compared: Mapping[str, Any], name: str, form: str) -> str:
  """A figure of `scores.compare` with its interval; a dash where there is none."""
  if compared.get(name) is None:
    return "-"
  low, high = compared[f"{name}_ci95"]
  return f"{compared[name]:{form}} [{low:{form}}, {high:{form}}]"


def gain_text(compared: Mapping[str, Any]) -> str:
  """The relative gain of `scores.compare` with its interval."""
  return interval_text(compared, "relative_gain", "+.0%")


def mean_text(found: Mapping[str, Any]) -> str:
  """A mean of `scores.summarize` with its interval."""
  return f"{found['mean']:.3f} [{found['ci95'][0]:.3f}, {found['ci95'][1]:.3f}]"
