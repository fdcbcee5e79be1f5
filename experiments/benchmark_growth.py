"""Shows how a step's time grows with the group, the prompt, the completion and the model.

    python experiments/benchmark_growth.py --plot=docs/images/growth.png

Each point is timed in two layouts: as training runs it, a prompt computed once for its group, and
with the prompt repeated for each candidate, which is the same two programs on P x G prompts with
groups of one. The other sizes stay at the middle of their lists. A point is written as soon as it
is measured; the same command again goes on where it stopped.
"""

import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from grpo_jax import command_line
from grpo_jax.benchmarking import growth
from grpo_jax.benchmarking.growth import LAYOUTS, Point
from grpo_jax.benchmarking.shapes import Workload
from grpo_jax.config import RunConfig
from grpo_jax.files.atomic import write_json
from grpo_jax.report.tables import Row, as_text
from grpo_jax.runs.installation import git_commit

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
command_line.define(
  Workload,
  [],
  axes=True,
  group_size=["2", "4", "8", "16"],
  prompt_tokens=["64", "128", "256", "512", "1024"],
  completion_tokens=["16", "32", "64", "128"],
)
command_line.define(Workload, [], prompts=2)
command_line.define(RunConfig, ["seed"])
flags.DEFINE_list("width", ["128", "256", "384"], "hidden sizes of the model, multiples of 128")
flags.DEFINE_integer("layers", 4, "layers of the model", lower_bound=1)
flags.DEFINE_integer("steps", 3, "timed steps of each point, after one to warm up", lower_bound=1)
flags.DEFINE_string("json", "runs/benchmark/growth.json", "the points so far")
flags.DEFINE_string("plot", "runs/benchmark/growth.png", "the picture")


@command_line.script()
def main(argv: list[str]) -> None:
  command_line.check()
  axes = command_line.axes() | {"width": [int(value) for value in FLAGS.width]}
  along = growth.points_along(axes, growth.base_of(axes, FLAGS.prompts, FLAGS.layers))
  out = Path(FLAGS.json)
  settings = {
    "steps": FLAGS.steps,
    "seed": FLAGS.seed,
    "jax": importlib.metadata.version("jax"),
    "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    "cpus": os.cpu_count(),
  }
  found = measure_all(along, settings, out)
  Path(FLAGS.plot).parent.mkdir(parents=True, exist_ok=True)
  growth.plot_growth(along, found, Path(FLAGS.plot))
  show(along, found)
  print(f"\nfigures: {out}   picture: {FLAGS.plot}")


def measure_all(
  along: dict[str, list[Point]], settings: dict[str, Any], out: Path
) -> dict[tuple[Point, str], dict[str, Any]]:
  """Measures what `out` does not have yet."""
  found: dict[tuple[Point, str], dict[str, Any]] = {}
  if out.exists():
    old = json.loads(out.read_text(encoding="utf-8"))
    if old["settings"] != settings:
      raise ValueError(f"{out} has points of other settings, {old['settings']}; choose another")
    found = {(Point(**row["point"]), row["layout"]): row for row in old["points"]}
  wanted = [(p, layout) for points in along.values() for p in points for layout in LAYOUTS]
  missing = [key for key in dict.fromkeys(wanted) if key not in found]
  for number, (point, layout) in enumerate(missing, 1):
    measured = growth.measure(point, layout, FLAGS.steps, FLAGS.seed)
    found[point, layout] = {
      "point": dataclasses.asdict(point),
      "layout": layout,
      "parameters": point.parameters,
      **measured,
      "git_commit": git_commit(),
    }
    write_json(out, {"settings": settings, "points": list(found.values())})
    seconds = measured["total"]["median"]
    print(f"[{number}/{len(missing)}] {point} {layout}: {seconds:.2f} s", flush=True)
  return found


def show(along: dict[str, list[Point]], found: dict[tuple[Point, str], dict[str, Any]]) -> None:
  """Prints a table of all points, axis by axis."""
  header: Row = ("axis", "value", "sample s", "update s", "step s", "repeated: sample s",
                 "update s", "step s", "times")  # fmt: skip
  rows: list[Row] = []
  for axis, points in along.items():
    for point in points:
      ours, theirs = (found[point, layout] for layout in LAYOUTS)
      phases = ("sample", "update", "total")
      seconds = [row[phase]["median"] for row in (ours, theirs) for phase in phases]
      times = f"{seconds[-1] / seconds[2]:.2f}"
      rows.append((axis, str(getattr(point, axis)), *(f"{one:.3f}" for one in seconds), times))
  print(f"\n{as_text(header, rows)}")


if __name__ == "__main__":
  app.run(main)
