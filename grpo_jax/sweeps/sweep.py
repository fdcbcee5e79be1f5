"""Sweeps: one training run for each cell of a grid, and a table of all runs.

Every cell runs in its own process, so that its memory and compiled programs are gone when the next
one starts. A cell that has finished is not run again.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from grpo_jax.files.atomic import write_json, write_text
from grpo_jax.files.redaction import without_secrets
from grpo_jax.report.plots import BLUE, DPI, GRAY, style
from grpo_jax.report.scores import compare
from grpo_jax.report.tables import Row, as_markdown, as_text, gain_text
from grpo_jax.report.templates import TEMPLATES
from grpo_jax.rewards import score
from grpo_jax.runs.folder import missing_folders, remove_empty
from grpo_jax.runs.preemption import EXIT_STOPPED, ChildRuns, Stopped
from grpo_jax.runs.trackers import read_metrics
from grpo_jax.sweeps.grid import Cell, as_flag
from grpo_jax.tasks.schema import BEHAVIORS, ToolTask
from grpo_jax.tasks.sources import read_tasks

SCORED_BY: Literal["tiered"] = "tiered"  # with its default numbers: what every cell is compared by
RECORD = "sweep_cell.json"


class SweepFailed(RuntimeError):
  """Some runs of a sweep failed; the message names them."""


def sweep(
  cells: Sequence[Cell],
  sweep_dir: Path,
  script: Path,
  passed_on: Sequence[str],
  own_flags: Collection[str],
  dry_run: bool,
) -> None:
  """Lists the runs of a sweep, runs what has not finished, and prints the table of all.

  Args:
    cells: see `run_sweep`, like the other arguments that are not explained here.
    sweep_dir: its folder.
    script: the training script.
    passed_on: more arguments of it.
    own_flags: flags that the sweep sets itself.
    dry_run: list the runs and stop.

  Raises:
    ValueError: as `run_sweep`.
    Stopped: as `run_sweep`.
    SweepFailed: a run failed; the others have their results.
  """
  check_sweep(cells, sweep_dir, passed_on, own_flags)
  print("\n".join([f"{len(cells)} runs", *(f"  {cell.name}" for cell in cells)]), flush=True)
  if dry_run:
    return
  command = [sys.executable, str(script)]
  failed = run_sweep(cells, sweep_dir, command, passed_on, own_flags=own_flags)
  print(f"\n{write_results(cells, sweep_dir)}\n\nsweep folder: {sweep_dir}")
  if failed:
    raise SweepFailed(f"{len(failed)} of {len(cells)} runs failed: {', '.join(failed)}")


def run_sweep(
  cells: Sequence[Cell],
  sweep_dir: Path,
  command: Sequence[str],
  passed_on: Sequence[str] = (),
  *,
  own_flags: Collection[str],
  dry_run: bool = False,
) -> list[str]:
  """Lists the cells, runs those that have not finished, and writes the results after each.

  A cell that fails is reported and the others go on, unless the first one cannot even claim its
  folder: then the arguments of all are at fault.

  Args:
    cells: what to run.
    sweep_dir: one run folder a cell, and sweep.md, sweep.json and sweep.png, renewed after each.
    command: the training script.
    passed_on: more arguments of it, for every cell.
    own_flags: flags that `passed_on` must not hold, since the sweep sets them.
    dry_run: list the cells and stop.

  Returns:
    The names of the cells that failed.

  Raises:
    ValueError: before any work: cells or arguments that contradict each other, or a sweep folder
      of other settings. Later: a cell that could not start, or evaluations that do not fit.
    Stopped: a signal asked for it; the cell that ran has a checkpoint to go on from.
  """
  check_sweep(cells, sweep_dir, passed_on, own_flags)
  print("\n".join([f"{len(cells)} runs", *(f"  {cell.name}" for cell in cells)]), flush=True)
  if dry_run:
    return []
  # Cells of the same shapes share their compiled programs through the disk.
  environment = {"JAX_COMPILATION_CACHE_DIR": str(sweep_dir / ".jax_cache"), **os.environ}
  failed, started = [], False
  with ChildRuns() as running:
    for number, cell in enumerate(cells, 1):
      folder = sweep_dir / cell.name
      if is_finished(folder):
        print(f"[{number}/{len(cells)}] {cell.name}: finished before", flush=True)
        continue
      if running.stopped_by:
        raise Stopped(f"stopped by {running.stopped_by} before {cell.name}")
      print(f"[{number}/{len(cells)}] {cell.name}", flush=True)
      arguments = [*cell.arguments, *passed_on]
      new = missing_folders(folder)
      record = {"arguments": without_secrets(arguments)}
      write_json(folder / RECORD, record)
      status, peak_gib = running.run([*command, f"--run_dir={folder}", *arguments], environment)
      claimed = (folder / "config.json").exists()
      started |= claimed
      if not claimed:
        (folder / RECORD).unlink()
        remove_empty(new)
      if status and (running.stopped_by or status == EXIT_STOPPED):
        raise Stopped(f"stopped by {running.stopped_by or 'a signal to the run'} in {cell.name}")
      if not started:
        raise ValueError(f"{cell.name} could not start, so no other was tried")
      if status:
        print(f"{cell.name} failed with exit status {status}", file=sys.stderr, flush=True)
        failed.append(cell.name)
      else:
        write_json(folder / RECORD, {**record, "peak_memory_gib": peak_gib})
        write_results(cells, sweep_dir)
  print(f"\n{write_results(cells, sweep_dir)}\n\nsweep folder: {sweep_dir}")
  if failed:
    print(f"{len(failed)} of {len(cells)} runs failed: {', '.join(failed)}", file=sys.stderr)
  return failed


def check_sweep(
  cells: Sequence[Cell], sweep_dir: Path, passed_on: Sequence[str], own_flags: Collection[str]
) -> None:
  """Validates a sweep before any run starts; takes the arguments of `run_sweep`.

  Raises:
    ValueError: cells or arguments that contradict each other, or a sweep folder of other settings.
  """
  name, count = Counter(cell.name for cell in cells).most_common(1)[0]
  if count > 1:
    raise ValueError(f"two cells would share the folder {name}")
  for argument in passed_on:
    flag = argument.lstrip("-").partition("=")[0]
    if not argument.startswith("--") or not flag:
      raise ValueError(f"{argument} cannot be passed on; expected --flag=value")
    if {flag, flag.removeprefix("no")} & {*own_flags, "run_dir"}:
      raise ValueError(f"{argument} is set by the sweep itself and cannot be passed on")
    if flag == "flagfile":  # and it may name further ones
      raise ValueError(
        f"{argument} could set what the sweep sets itself; give its flags after -- instead"
      )
  for cell in cells:
    record = sweep_dir / cell.name / RECORD
    if record.exists():
      then = set(without_secrets(_read_json(record)["arguments"]))
      now = set(without_secrets([*cell.arguments, *passed_on]))
      if then != now:
        raise ValueError(
          f"{record.parent} was run with {' '.join(sorted(then - now)) or 'less'} and now with "
          f"{' '.join(sorted(now - then)) or 'less'}; choose another --sweep_dir"
        )


def is_finished(folder: Path) -> bool:
  """Whether a run folder has everything that a run leaves."""
  return (folder / "eval_final.json").exists() and (folder / "report.html").exists()


def write_results(cells: Sequence[Cell], sweep_dir: Path) -> str:
  """Writes sweep.md, sweep.json and sweep.png of the cells that have finished.

  Returns:
    The table, for a terminal; empty when no cell has finished.
  """
  found = [cell_results(cell, sweep_dir) for cell in cells if is_finished(sweep_dir / cell.name)]
  if not found:
    return ""
  groups = over_seeds(found)
  header, rows = results_table(groups)
  template = TEMPLATES.get_template("sweep.txt.j2")
  counts = {"done": len(found), "all": len(cells), "scored_by": SCORED_BY}
  text = template.render(counts, table=as_markdown(header, rows))
  write_text(sweep_dir / "sweep.md", f"# {sweep_dir.name}\n\n{text}\n\n![after](sweep.png)\n")
  runs = [{name: value for name, value in run.items() if name != "rows"} for run in found]
  write_json(sweep_dir / "sweep.json", {"scored_by": SCORED_BY, "runs": runs, "settings": groups})
  draw_results(groups).savefig(sweep_dir / "sweep.png", dpi=DPI)
  return template.render(counts, table=as_text(header, rows))


def cell_results(cell: Cell, sweep_dir: Path) -> dict[str, Any]:
  """The results of a finished cell, its saved completions scored again by `SCORED_BY`.

  Returns:
    `name`, `settings`, by split `scores.compare` in `splits`, the mean reward that it was trained
    with in `own_reward`, `minutes`, `tokens`, `peak_memory_gib`, and the scored `rows`.
  """
  folder = sweep_dir / cell.name
  config = _read_json(folder / "config.json")
  metrics = read_metrics(folder / "metrics.jsonl")
  parse, rows = config["reward_config"]["parse"], {}
  for split, source in config["eval_data"]:
    tasks = read_tasks(source, config["data_seed"])
    paths = (folder / "eval" / f"{when}_{split}.jsonl" for when in ("base", "final"))
    rows[split] = [rescored(path, tasks, parse) for path in paths]
  own = _read_json(folder / "eval_final.json")
  return {
    "name": cell.name,
    "settings": dict(cell.settings),
    "splits": {split: compare(*pair, seed=0) for split, pair in rows.items()},
    "own_reward": {split: summary["reward_mean"] for split, summary in own.items()},
    "minutes": sum(entry["step_time"] for entry in metrics) / 60,
    "tokens": metrics[-1]["num_tokens"],
    "peak_memory_gib": _read_json(folder / RECORD).get("peak_memory_gib"),
    "rows": rows,
  }


def rescored(path: Path, tasks: Sequence[ToolTask], parse: Any) -> list[dict[str, Any]]:
  """The rows of a saved evaluation with the reward that all cells are compared by.

  Raises:
    ValueError: the tasks are not those that were evaluated.
  """
  rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
  for row in rows:
    task = tasks[row["index"]] if row["index"] < len(tasks) else None
    if task is None or task.request != row["request"]:
      raise ValueError(f"{path} is not an evaluation of the tasks that its config.json names")
    row["reward"] = score(row["completion"], task, SCORED_BY, parse).total
  return rows


def over_seeds(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Puts the results of the same settings under different seeds together."""
  groups: dict[tuple, list[Mapping[str, Any]]] = {}
  for run in found:
    groups.setdefault(Cell(run["settings"]).repeated, []).append(run)
  merged = []
  for settings, runs in groups.items():
    splits = {}
    for split, (before, _) in runs[0]["rows"].items():
      after = [row for run in runs for row in run["rows"][split][1]]
      each = [run["splits"][split]["final_mean"] for run in runs]
      splits[split] = {**compare(before, after, seed=0), "each_seed": each}
    peaks = [run["peak_memory_gib"] for run in runs if run["peak_memory_gib"]]
    merged.append(
      {
        "settings": dict(settings),
        "seeds": [run["settings"]["seed"] for run in runs],
        "splits": splits,
        "minutes": float(np.mean([run["minutes"] for run in runs])),
        "peak_memory_gib": max(peaks, default=None),
      }
    )
  return merged


def results_table(groups: Sequence[Mapping[str, Any]]) -> tuple[Row, list[Row]]:
  """The header and rows: one row for each split and setting, seeds averaged."""
  axes = list(dict.fromkeys(flag for group in groups for flag in group["settings"]))
  header = (
    "split", *axes, "before", "after", "relative gain [95%]", *BEHAVIORS, "minutes", "peak GiB",
    "after, by seed",
  )  # fmt: skip
  rows = []
  for split in groups[0]["splits"]:
    for group in groups:
      found = group["splits"][split]
      by_behavior, peak = found["by_behavior"], group["peak_memory_gib"]
      seeds = zip(group["seeds"], found["each_seed"], strict=True)
      rows.append(
        (
          split,
          *(as_flag(group["settings"].get(axis, "-")) for axis in axes),
          f"{found['base_mean']:.3f}",
          f"{found['final_mean']:.3f}",
          gain_text(found),
          *(f"{by_behavior[b]['final_mean']:.3f}" if b in by_behavior else "-" for b in BEHAVIORS),
          f"{group['minutes']:.1f}",
          f"{peak:.1f}" if peak else "-",
          " ".join(f"{seed}: {mean:.3f}" for seed, mean in seeds),
        )
      )
  return header, rows


def draw_results(groups: Sequence[Mapping[str, Any]]) -> Figure:
  """Draws the reward after training: one line a setting, a ring a seed, a dot their mean."""
  splits = list(groups[0]["splits"])
  labels = [
    "\n".join(f"{flag} {as_flag(value)}" for flag, value in group["settings"].items())
    for group in groups
  ]
  height = 1.0 + len(groups) * max(0.4, 0.17 * max(label.count("\n") + 1 for label in labels))
  figure = Figure(figsize=(4.4 * len(splits) + 1.2, height), layout="constrained")
  panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
  for axes, split in zip(panels, splits, strict=True):
    style(axes, grid="x")
    base = groups[0]["splits"][split]["base_mean"]
    axes.axvline(base, color=GRAY, linestyle="--", linewidth=1, label="before")
    for place, group in enumerate(groups):
      found = group["splits"][split]
      axes.plot(found["each_seed"], [place] * len(found["each_seed"]), "o", mfc="none", mec=BLUE)
      axes.plot(found["final_mean"], place, "o", color=BLUE, label="after" if not place else None)
    axes.set_title(f"{split} (n = {groups[0]['splits'][split]['n']})")
    axes.set_xlabel(f"mean reward ({SCORED_BY})")
  panels[0].set_yticks(range(len(groups)), labels, fontsize="small")
  panels[0].set_ylim(len(groups) - 0.5, -0.5)
  panels[-1].legend(frameon=False, fontsize="small")
  return figure


def _read_json(path: Path) -> Any:
  return json.loads(path.read_text(encoding="utf-8"))
