"""The report of a run folder: report.md, report.html and PNG plots."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_jax.files.atomic import write_text
from grpo_jax.report.scores import SHOWN, compare, differing_settings
from grpo_jax.report.tables import Row, as_markdown, gain_rows
from grpo_jax.report.templates import TEMPLATES
from grpo_jax.rewards import ERRORS
from grpo_jax.runs.alarms import ALARMS
from grpo_jax.runs.trackers import read_metrics
from grpo_jax.tasks.schema import BEHAVIORS

EXAMPLES = 10  # per split, evenly spaced over its tasks: not picked by hand or by reward
Summaries = Mapping[str, Mapping[str, Any]]
Rows = Sequence[Mapping[str, Any]]  # of `evaluate`
Pair = tuple[Rows, Rows]  # before and after


@dataclass(frozen=True)
class Table:
  """A titled table of text cells."""

  title: str
  header: Row
  rows: Sequence[Row]

  @property
  def markdown(self) -> str:
    return as_markdown(self.header, self.rows)


def write_report(run_dir: Path | str) -> Path:
  """Writes report.md, report.html and the PNG files into a run folder.

  The page holds its pictures and needs nothing beside it. A run that has not finished gets a report
  of what there is.

  Args:
    run_dir: a folder with config.json and, as far as the run has got, metrics.jsonl,
      eval_base.json, eval_final.json and `eval/{base,final}_<split>.jsonl`.

  Returns:
    The path of report.html.

  Raises:
    FileNotFoundError: the folder holds no config.json.
  """
  from grpo_jax.report.plots import plot_curves, plot_gain  # matplotlib, which takes its time

  run_dir = Path(run_dir)
  config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
  metrics_path = run_dir / "metrics.jsonl"
  metrics = read_metrics(metrics_path) if metrics_path.exists() else []
  base, final, pairs, comparisons, notes = _read_evaluations(run_dir)

  plots = [plot_gain(base, final, run_dir / "gain.png")] if pairs else []
  plots += plot_curves(metrics, run_dir)
  content = {
    "title": run_dir.resolve().name,
    "finished": bool(final),
    "headlines": [*(_headline(split, found) for split, found in comparisons.items()), *notes],
    "cost": _cost(metrics),
    "alarms": _alarms(metrics),
    "gain": Table("Reward before and after", *gain_rows(base, final, comparisons)),
    "tables": [table for split in pairs for table in _tables(split, base[split], final[split])],
    "plots": plots,
    "images": {
      plot.file: base64.b64encode((run_dir / plot.file).read_bytes()).decode() for plot in plots
    },
    "examples": {split: _examples(*pair) for split, pair in pairs.items() if all(pair)},
    "settings": [(k, v) for k, v in config.items() if not isinstance(v, dict | list)],
    "config": json.dumps(config, indent=2, ensure_ascii=False),
  }
  for kind in ("md", "html"):
    text = TEMPLATES.get_template(f"report.{kind}.j2").render(content)
    write_text(run_dir / f"report.{kind}", text)
  return run_dir / "report.html"


def gain_table(run_dir: Path | str) -> Table:
  """The reward before and after, per split and behavior, of a finished run folder."""
  base, final, _, comparisons, _ = _read_evaluations(Path(run_dir))
  return Table("Reward before and after", *gain_rows(base, final, comparisons))


def reward_color(reward: float) -> str:
  """A pale CSS color from red (0 and below) over yellow to green (1 and above)."""
  return f"hsl({120 * min(1.0, max(0.0, reward)):.0f} 65% 88%)"


def _read_evaluations(
  run_dir: Path,
) -> tuple[Summaries, Summaries, dict[str, Pair], Summaries, list[str]]:
  """Summaries before and after, the completions of both, their comparison, and notes on it.

  A split whose two evaluations were made with other settings has none before: only a note.
  """
  base, final = (
    json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for path in (run_dir / "eval_base.json", run_dir / "eval_final.json")
  )
  found = {s: differing_settings(base[s], final[s]) for s in base if s in final}
  notes = [
    f"{split}: no gain, for the evaluations before and after differ in {', '.join(names)}"
    for split, names in found.items()
    if names
  ]
  if None in found.values():
    notes.append("It is not recorded whether both evaluations had the same settings.")
  base = {split: summary for split, summary in base.items() if not found.get(split)}
  pairs = {split: _read_pair(run_dir, split) for split in base if split in final}
  comparisons = {split: compare(*pair, seed=0) for split, pair in pairs.items() if all(pair)}
  return base, final, pairs, comparisons, notes


def _read_pair(run_dir: Path, split: str) -> Pair:
  """The completions of a split before and after; empty where the file is missing."""
  before, after = (
    [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    if (path := run_dir / "eval" / f"{when}_{split}.jsonl").exists()
    else []
    for when in ("base", "final")
  )
  return before, after


def _headline(split: str, compared: Mapping[str, Any]) -> str:
  words = f"{split}: mean reward {compared['base_mean']:.3f} → {compared['final_mean']:.3f}"
  if compared["relative_gain"] is None:
    return words
  low, high = compared["relative_gain_ci95"]
  return f"{words}, {compared['relative_gain']:+.0%} (95% interval {low:+.0%} to {high:+.0%})"


def _cost(metrics: Sequence[Mapping[str, float]]) -> str:
  """How much was trained, in one sentence."""
  if not metrics:
    return "No training step was logged."
  words = f"{len(metrics)} training steps"
  if "step_time" in metrics[0]:
    minutes = sum(entry["step_time"] for entry in metrics) / 60
    words += f", {minutes:.1f} minutes"
  if "num_tokens" in metrics[-1]:
    words += f", {metrics[-1]['num_tokens']:,.0f} tokens"
  return words + "."


def _alarms(metrics: Sequence[Mapping[str, float]]) -> list[str]:
  """One sentence for each alarm that was raised: when, what it means and what to try."""
  sentences = []
  for alarm in ALARMS:
    steps = [int(line["step"]) for line in metrics if line.get(f"alarms/{alarm.name}")]
    if steps:
      where = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps from {steps[0]} on"
      sentences.append(f"{alarm.name}, {where}: {alarm.meaning}. Try: {alarm.advice}.")
  return sentences


def _tables(split: str, base: Mapping[str, Any], final: Mapping[str, Any]) -> list[Table]:
  """What was wanted and shown, which mistakes, and the reward of each tool."""
  confusion = [
    (wanted, when, *(str(summary["confusion"][wanted][shown]) for shown in SHOWN))
    for wanted in BEHAVIORS
    for when, summary in (("before", base), ("after", final))
  ]
  rates = base["error_rates"], final["error_rates"]
  codes = rates[0].keys() | rates[1].keys()
  errors = [
    (code, ERRORS.get(code, "reported by the reward"), *(f"{r.get(code, 0.0):.1%}" for r in rates))
    for code in sorted(codes, key=lambda code: (-rates[0].get(code, 0.0), code))
  ]
  tools = [
    (tool, str(found["n"]), f"{found['mean']:.3f}", f"{final['by_tool'][tool]['mean']:.3f}")
    for tool, found in base["by_tool"].items()
    if tool in final["by_tool"]
  ]
  return [
    Table(f"Wanted and shown behaviour, {split}", ("wanted", "", *SHOWN), confusion),
    Table(f"Mistakes, {split}", ("error", "meaning", "before", "after"), errors),
    Table(f"Reward by tool, {split}", ("tool", "tasks", "before", "after"), tools),
  ]


def _examples(before: Rows, after: Rows) -> list[Rows]:
  """The first completions of some tasks, before and after."""
  first = [{row["index"]: row for row in rows if row["sample"] == 0} for rows in (before, after)]
  order = sorted(first[0])
  count = min(EXAMPLES, len(order))
  return [[rows[order[i * len(order) // count]] for rows in first] for i in range(count)]


def _fenced(text: str) -> str:
  """Text as a Markdown code block whose fence the text itself cannot close."""
  longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  return f"{fence}text\n{text}\n{fence}"


TEMPLATES.filters.update(reward_color=reward_color, fenced=_fenced)
