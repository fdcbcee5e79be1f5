"""How a step's time grows with the group, the prompt, the completion and the model."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from grpo_jax.benchmarking.shapes import Workload, qwen2
from grpo_jax.benchmarking.timing import TimedStep, spread
from grpo_jax.benchmarking.work import RandomWork
from grpo_jax.models import DecoderConfig
from grpo_jax.models.parameters import parameter_count
from grpo_jax.report.plots import BLUE, DPI, GREEN, style

LAYOUTS = {"shared": False, "repeated": True}  # whether `TimedStep` repeats prompts
Axes = Mapping[str, Sequence[int]]  # by the name of a `Point`'s field
# By field of a point: what is written below its panel.
LABELS = {
  "group_size": "candidates a prompt (G)",
  "prompt_tokens": "prompt tokens",
  "completion_tokens": "completion tokens",
  "width": "parameters, millions",
}


@dataclass(frozen=True)
class Point:
  """One size of model and batch: `width` is the hidden size, the rest as in `Workload`."""

  prompts: int
  group_size: int
  prompt_tokens: int
  completion_tokens: int
  width: int
  layers: int

  def __post_init__(self) -> None:
    if self.width < 128 or self.width % 128 or self.layers < 1:
      raise ValueError("--width must be multiples of 128 and --layers at least 1")

  @property
  def config(self) -> DecoderConfig:
    """Of a decoder of Qwen 2.5's proportions."""
    return qwen2(
      vocab_size=4096, hidden_size=self.width, intermediate_size=4 * self.width,
      num_layers=self.layers, num_heads=self.width // 64, num_kv_heads=2,
    )  # fmt: skip

  @property
  def load(self) -> Workload:
    """The batch."""
    return Workload(self.prompts, self.prompt_tokens, self.group_size, self.completion_tokens)

  @property
  def parameters(self) -> int:
    """Of the decoder."""
    return parameter_count(self.config)


def base_of(axes: Axes, prompts: int, layers: int) -> Point:
  """The point from which each axis starts out: the middle of all of them."""
  return Point(
    prompts, layers=layers, **{n: values[len(values) // 2] for n, values in axes.items()}
  )


def points_along(axes: Axes, base: Point) -> dict[str, list[Point]]:
  """The points of each axis, all other sizes being the base's."""
  return {
    name: [dataclasses.replace(base, **{name: value}) for value in values]
    for name, values in axes.items()
  }


def measure(point: Point, layout: str, steps: int, seed: int = 0) -> dict[str, Any]:
  """Median, least and most seconds of each phase, over so many steps after one to warm up."""
  step = TimedStep(RandomWork(point.config, point.load, seed), repeated=LAYOUTS[layout], seed=seed)
  step.run()
  times = [step.run() for _ in range(steps)]
  seconds = {n: spread([getattr(one, n) for one in times]) for n in ("sample", "update", "total")}
  return {**seconds, "foreign_cpu_share": statistics.median(one.foreign for one in times)}


def plot_growth(points: Mapping[str, Sequence[Point]], found: Any, path: Path) -> None:
  """Draws one panel an axis: seconds of sampling and of the update, the prompt shared or repeated.

  Args:
    points: of each axis.
    found: from (point, layout) to what `measure` returned.
    path: the PNG file.
  """
  figure = Figure(figsize=(8.8, 6.6), layout="constrained")
  panels = figure.subplots(2, 2).flat
  for axes, (name, along) in zip(panels, points.items(), strict=True):
    style(axes, grid="both")
    places = [p.parameters / 1e6 if name == "width" else getattr(p, name) for p in along]
    for layout, line in (("repeated", "--"), ("shared", "-")):
      for phase, color in (("update", GREEN), ("sample", BLUE)):
        seconds = [found[point, layout][phase]["median"] for point in along]
        axes.plot(
          places, seconds, "o" + line, color=color, markersize=4, label=f"{phase}, {layout}"
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:.3g}" if name == "width" else str(place) for place in places])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(LABELS[name])
    axes.set_ylabel("seconds")
  figure.axes[0].legend(frameon=False, fontsize="small")
  figure.savefig(path, dpi=DPI)
