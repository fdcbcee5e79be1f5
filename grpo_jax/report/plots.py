"""Plots of training curves and of rewards before and after; no pyplot state."""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpo_jax.report.tables import means_of
from grpo_jax.tasks.schema import BEHAVIORS

Metrics = Sequence[Mapping[str, float]]
Draw = Callable[[Axes, Metrics], bool]  # returns whether there was a value to draw

# Okabe and Ito's palette: told apart by readers who do not see red and green apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GRAY = (
  "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666",
)  # fmt: skip
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
PHASES = {"sample": BLUE, "reward": ORANGE, "update": GREEN, "other": GRAY}
SIZE, DPI = (6.4, 3.6), 110  # inches, dots per inch
# A step this many times longer than the median is drawn off the scale, with its length in words.
OFF_SCALE = 3.0


@dataclass(frozen=True)
class Plot:
  """One picture: the name of its file, and what it shows in one sentence."""

  file: str
  caption: str


def plot_curves(metrics: Metrics, out_dir: Path) -> list[Plot]:
  """Draws every curve that the metrics hold.

  Args:
    metrics: one mapping a step, with `step`; NaN where a value was not finite.
    out_dir: where the PNG files go.

  Returns:
    The pictures drawn, in reading order; a curve without any value is left out.
  """
  drawn = []
  for plot, label, draw, limits in _PICTURES:
    figure, axes = _figure()
    if draw(axes, metrics):
      axes.set(xlabel="step", ylabel=label)
      if limits:
        axes.set_ylim(*limits)
      if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
      figure.savefig(out_dir / plot.file, dpi=DPI)
      drawn.append(plot)
  return drawn


def plot_gain(
  base: Mapping[str, Mapping[str, Any]], final: Mapping[str, Mapping[str, Any]], path: Path
) -> Plot:
  """Draws mean reward before and after, for each split and behavior, with 95% intervals.

  Args:
    base: by split, what `scores.summarize` returns, before.
    final: the same splits, after.
    path: the PNG file.
  """
  splits = [split for split in base if split in final]
  figure = Figure(figsize=(4.2 * len(splits) + 0.4, SIZE[1]), layout="constrained")
  panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
  bars = ((-0.2, GRAY, "before", base), (0.2, BLUE, "after", final))
  for axes, split in zip(panels, splits, strict=True):
    style(axes)
    labels = list(means_of(base[split]))
    for offset, color, label, summaries in bars:
      found = means_of(summaries[split])
      means = np.array([found[name]["mean"] for name in labels])
      bounds = np.array([found[name]["ci95"] for name in labels]).T
      places = np.arange(len(labels)) + offset
      errors = np.abs(bounds - means)
      axes.bar(places, means, 0.38, color=color, label=label, yerr=errors, capsize=3)
      for place, mean, high in zip(places, means, bounds[1], strict=True):
        axes.annotate(
          f"{mean:.2f}", (place, high), (0, 3), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_title(f"{split} (n = {base[split]['n']})")
  panels[0].set_ylabel("mean reward, 95% interval")
  panels[0].set_ylim(top=max(1.12, panels[0].get_ylim()[1]))
  handles = panels[0].get_legend_handles_labels()  # not in a panel: any bar may be high
  figure.legend(*handles, frameon=False, fontsize="small", loc="outside upper right", ncols=2)
  figure.savefig(path, dpi=DPI)
  return Plot(path.name, "Mean reward before and after training, with 95% bootstrap intervals.")


def _figure() -> tuple[Figure, Axes]:
  figure = Figure(figsize=SIZE, layout="constrained")
  axes = figure.subplots()
  style(axes)
  return figure, axes


def style(axes: Axes, grid: Literal["x", "y", "both"] = "y") -> None:
  """Axes without a frame, and with faint lines behind what is drawn."""
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
  axes.set_axisbelow(True)


def _series(metrics: Metrics, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values [N] of one metric, where it has a finite value."""
  points = [
    (entry["step"], entry[name]) for entry in metrics if math.isfinite(entry.get(name, math.nan))
  ]
  steps, values = zip(*points, strict=True) if points else ((), ())
  return np.array(steps, dtype=float), np.array(values, dtype=float)


def _curve(axes: Axes, metrics: Metrics, name: str, label: str, color: str) -> bool:
  """Draws a metric faintly, and its moving average over a tenth of the run on top."""
  steps, values = _series(metrics, name)
  if not len(steps):
    return False
  window = max(1, len(values) // 10)
  if window > 1:
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
  # Each mean is taken over the part of the window that lies inside the run.
  ones = np.convolve(np.ones(len(values)), np.ones(window), mode="same")
  smooth = np.convolve(values, np.ones(window), mode="same") / ones
  marker = "o" if len(steps) == 1 else None
  axes.plot(steps, smooth, color=color, label=label, linewidth=1.6, marker=marker)
  return True


def _curves(axes: Axes, metrics: Metrics, labels: Mapping[str, str]) -> bool:
  """Draws metrics under their labels; returns whether any of them has a value."""
  drawn = [
    _curve(axes, metrics, name, label, color)
    for (name, label), color in zip(labels.items(), itertools.cycle(CYCLE), strict=False)
  ]
  return any(drawn)


def _parts_of(metrics: Metrics, pattern: str) -> dict[str, str]:
  """The metrics whose name fits a pattern with one group, and what the group is in each."""
  names = dict.fromkeys(name for entry in metrics for name in entry)
  return {name: match[1] for name in names if (match := re.fullmatch(pattern, name))}


def _reward(axes: Axes, metrics: Metrics) -> bool:
  steps, means = _series(metrics, "reward")
  deviation_steps, deviations = _series(metrics, "reward_std")
  if np.array_equal(steps, deviation_steps):
    axes.fill_between(
      steps, means - deviations, means + deviations, color=BLUE, alpha=0.08, linewidth=0,
      label="± standard deviation",
    )  # fmt: skip
  drawn = _curve(axes, metrics, "reward", "training, sampled", BLUE)
  held_out = sorted(_parts_of(metrics, "eval/([^/]+)/reward").items())
  for color, (name, split) in zip(CYCLE[1:], held_out, strict=False):
    axes.plot(*_series(metrics, name), "o-", color=color, markersize=4, label=f"held out: {split}")
  return drawn


def _lengths(axes: Axes, metrics: Metrics) -> bool:
  low, high = (_series(metrics, f"completions/{end}_length") for end in ("min", "max"))
  if len(low[0]) and np.array_equal(low[0], high[0]):
    axes.fill_between(
      low[0], low[1], high[1], color=BLUE, alpha=0.1, linewidth=0, label="shortest to longest"
    )
  return _curve(axes, metrics, "completions/mean_length", "mean", BLUE)


def _seconds(axes: Axes, metrics: Metrics) -> bool:
  phases = [phase for phase in PHASES if any(f"seconds/{phase}" in entry for entry in metrics)]
  if not phases:
    return False
  steps = np.array([entry["step"] for entry in metrics], dtype=float)
  seconds = np.nan_to_num(
    [[entry.get(f"seconds/{phase}", 0.0) for entry in metrics] for phase in phases]
  )
  colors = [PHASES[phase] for phase in phases]
  axes.stackplot(steps, seconds, labels=phases, colors=colors, step="mid")
  totals = seconds.sum(axis=0)
  top = OFF_SCALE * float(np.median(totals))
  off_scale = totals > top
  if top and off_scale.any():
    axes.set_ylim(0, top)
    axes.set_title(
      f"{off_scale.sum()} step(s) off the scale, the longest {totals.max():.0f} s at step "
      f"{steps[totals.argmax()]:.0f} (compilation, or an evaluation)",
      fontsize=8,
      color=GRAY,
    )
  return True


def _lines(labels: Mapping[str, str]) -> Draw:
  """A drawing of metrics that are known by name, under these labels."""
  return lambda axes, metrics: _curves(axes, metrics, labels)


# Each picture with the label of its y axis, what draws it, and the limits of that axis, if any.
_PICTURES: tuple[tuple[Plot, str, Draw, tuple[float, float | None] | None], ...] = (
  (
    Plot("reward.png", "Reward of the sampled completions, and of held-out tasks."),
    "reward", _reward, None,
  ),
  (
    Plot("reward_parts.png", "Mean of each part of the reward."),
    "mean of each part",
    lambda axes, metrics: _curves(axes, metrics, _parts_of(metrics, "rewards/(.+)/mean")), None,
  ),
  (
    Plot("shown.png", "Behavior that the completions showed, whatever was wanted."),
    "share of completions", _lines({f"shown/{name}": name for name in BEHAVIORS}), (0, 1),
  ),
  (
    Plot("completion_length.png", "Completion length in tokens."),
    "completion tokens", _lengths, None,
  ),
  (
    Plot("entropy.png", "Entropy of the policy. A fall towards 0 is a collapse."),
    "entropy, nats a token", _lines({"entropy": ""}), (0, None),
  ),
  (
    Plot("nll.png", "Negative log-likelihood of the demonstrations."),
    "nats a token", _lines({"nll": ""}), (0, None),
  ),
  (
    Plot("kl.png", "KL divergence from the policy that training started from."),
    "KL to the start, nats a token", _lines({"kl": ""}), None,
  ),
  (
    Plot("clipped.png", "Share of tokens clipped by the loss, and of completions cut."),
    "share",
    _lines({
      "clip_ratio/low_mean": "ratio below the band",
      "clip_ratio/high_mean": "ratio above the band",
      "completions/clipped_ratio": "completions cut at the limit",
    }), (0, None),
  ),
  (
    Plot("equal_groups.png", "Share of groups whose rewards are all equal: they teach nothing."),
    "share of groups", _lines({"frac_reward_zero_std": ""}), (0, 1),
  ),
  (Plot("seconds.png", "Where the time of a step goes."), "seconds a step", _seconds, None),
)  # fmt: skip
