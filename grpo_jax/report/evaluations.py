"""An evaluation's files: the summary as JSON, and the completions beside it as JSONL."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grpo_jax.files.atomic import write_json
from grpo_jax.report.scores import differing_settings
from grpo_jax.tasks.jsonl import write_jsonl


def out_paths(out: str) -> tuple[Path, Path]:
  """Where the scores and the completions of `--out` lie."""
  path = Path(out) if out.endswith(".json") else Path(out) / "eval.json"
  own = "" if path.name == "eval.json" else f"{path.stem}."
  return path, path.with_name(f"{own}completions.jsonl")


def write_evaluation(
  out: str, summary: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]
) -> Path:
  """Writes both files, the summary last; returns where it lies."""
  scores, completions = out_paths(out)
  write_jsonl(rows, completions)
  write_json(scores, summary)
  return scores


def read_evaluation(out: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """The summary and the rows of an earlier evaluation.

  Raises:
    ValueError: the completions there are those of another evaluation.
  """
  scores, completions = out_paths(out)
  summary = json.loads(scores.read_text(encoding="utf-8"))
  if "reward" in summary.get("settings", {}):
    summary["settings"] = {"parse": "strict"} | summary["settings"]  # once, there was no other
  if not completions.exists():  # once, all JSON files of a folder shared one file of completions
    completions = completions.with_name("completions.jsonl")
  lines = completions.read_text(encoding="utf-8").split("\n")  # splitlines would split texts, too
  rows = [json.loads(line) for line in lines if line]
  if "categories" in summary:  # an interrupted evaluation may have rows of one more
    rows = [row for row in rows if row["category"] in summary["categories"]]
  if not belong_together(summary, rows):
    raise ValueError(f"{completions} does not hold the completions of {scores}: evaluate again")
  return summary, rows


def belong_together(summary: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
  """Whether as many rows, with the same mean reward and length, were summed up."""
  if not {"n", "samples", "reward_mean", "completion_tokens"} <= summary.keys():
    return False  # some other JSON file
  if not rows or len(rows) != summary["n"] * summary["samples"]:
    return False
  mean = lambda name: math.fsum(row[name] for row in rows) / len(rows)
  same = lambda name, found: math.isclose(summary[name], found, rel_tol=1e-9, abs_tol=1e-9)
  return same("reward_mean", mean("reward")) and same("completion_tokens", mean("tokens"))


def check_comparable(out: str, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
  """Refuses to compare with an earlier evaluation's summary, of other settings."""
  if names := differing_settings(before, {"settings": settings}):
    raise ValueError(f"--compare_with={out} has another {', '.join(names)}")
