"""The stages of a recipe side by side: the raw model, the warm start, the trained policy."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax.report.page import Table
from grpo_jax.report.scores import compare, differing_settings
from grpo_jax.report.tables import Row, gain_text, interval_text, mean_text, means_of
from grpo_jax.tasks.schema import BEHAVIORS

#: File names of the evaluations of a folder, in order, and what they are called in a table.
STAGES: Mapping[str, str] = {"base": "raw", "warm": "warm-started", "final": "trained"}

START = "init_adapter_sha256"  # what a stage began with: another for each, as it should be


def stage_table(folder: Path | str) -> Table:
  """Mean reward at every stage, what was gained over the raw model, and over the warm start.

  Args:
    folder: with `eval_<stage>.json` and `eval/<stage>_<split>.jsonl` for `base`, `final` and, where
      there was a warm start, `warm`.

  Returns:
    A row for each split and behavior; intervals are paired by task.

  Raises:
    FileNotFoundError: an evaluation is missing.
    ValueError: the stages were evaluated with different settings or tasks.
  """
  folder = Path(folder)
  there = [stage for stage in STAGES if stage != "warm" or (folder / "eval_warm.json").exists()]
  found = {stage: _summaries(folder, stage) for stage in there}
  warm = "warm" in found
  rows: list[Row] = []
  for split, base in found["base"].items():
    for stage in there[1:]:
      names = {*(differing_settings(base, found[stage][split]) or ())} - {START}
      if names:
        raise ValueError(
          f"{folder}: {split}, {stage} differs from base in {', '.join(sorted(names))}"
        )
    completions = {stage: _rows(folder, stage, split) for stage in there}
    gain = _by_label(compare(completions["base"], completions["final"], seed=0))
    over_warm = (
      _by_label(compare(completions["warm"], completions["final"], seed=0)) if warm else {}
    )
    means = {stage: means_of(found[stage][split]) for stage in there}
    for label, first in means["base"].items():
      cells = [split, label, str(first["n"]), *(mean_text(means[s][label]) for s in there)]
      cells.append(gain_text(gain[label]))
      if warm:
        cells.append(interval_text(over_warm[label], "difference", "+.3f"))
      rows.append(tuple(cells))
  header: Row = (
    "split", "behavior", "tasks", *(f"{STAGES[s]} [95%]" for s in there), "trained / raw - 1 [95%]",
    *(["trained - warm-started [95%]"] if warm else []),
  )  # fmt: skip
  return Table("Reward by stage", header, rows)


def results_table(folders: Sequence[Path | str], split: str = "unseen") -> Table:
  """One row a result: mean reward at every stage on a split, gains, and reward by behavior.

  Args:
    folders: see `stage_table`; a row is named after its folder.
    split: the held-out one.

  Raises:
    FileNotFoundError: an evaluation is missing.
  """
  rows: list[Row] = []
  for folder in map(Path, folders):
    found = {
      stage: _summaries(folder, stage)[split]
      for stage in STAGES
      if stage != "warm" or (folder / "eval_warm.json").exists()
    }
    completions = {stage: _rows(folder, stage, split) for stage in found}
    over_raw = compare(completions["base"], completions["final"], seed=0)
    over_warm = (
      compare(completions["warm"], completions["final"], seed=0) if "warm" in found else {}
    )
    means = {
      stage: {label: f"{it['mean']:.3f}" for label, it in means_of(summary).items()}
      for stage, summary in found.items()
    }
    whole = [means[stage]["all"] if stage in means else "-" for stage in STAGES]
    rows.append((
      folder.name, *whole[:2], f"**{whole[2]}**", gain_text(over_raw),
      interval_text(over_warm, "difference", "+.3f"),
      *(" → ".join(by[label] for by in means.values()) for label in BEHAVIORS),
    ))  # fmt: skip
  number = found["base"]["n"] if folders else 0
  header: Row = (
    "result", *STAGES.values(), "trained / raw - 1 [95%]", "trained - warm-started [95%]",
    *BEHAVIORS,
  )  # fmt: skip
  return Table(f"Reward on {number} {split} tasks", header, rows)


def _summaries(folder: Path, stage: str) -> dict[str, Any]:
  return json.loads((folder / f"eval_{stage}.json").read_text(encoding="utf-8"))


def _rows(folder: Path, stage: str, split: str) -> list[dict[str, Any]]:
  text = (folder / "eval" / f"{stage}_{split}.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.split("\n") if line]


def _by_label(compared: Mapping[str, Any]) -> dict[str, Any]:
  return {"all": compared, **compared["by_behavior"]}
