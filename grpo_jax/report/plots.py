"""Curves of a run and the bars of what it gained, drawn without any global state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpo_jax.tasks.schema import BEHAVIORS

Metrics = Sequence[Mapping[str, float]]

# Okabe and Ito's palette: told apart by readers who do not see red and green apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
  "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666",
)  # fmt: skip
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
PHASES = {"sample": BLUE, "reward": ORANGE, "update": GREEN, "other": GREY}
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
  for plot, draw in _CURVES:
    figure, axes = _figure()
    if draw(axes, metrics):
      axes.set_xlabel("step")
      if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
      figure.savefig(out_dir / plot.file, dpi=DPI)
      drawn.append(plot)
  return drawn


def plot_gain(
  base: Mapping[str, Mapping[str, Any]], final: Mapping[str, Mapping[str, Any]], path: Path
) -> Plot:
  """Draws mean reward before and after, for each split and behaviour, with 95% intervals.

  Args:
    base: by split, what `scores.summarise` returns, before.
    final: the same splits, after.
    path: the PNG file.
  """
  splits = [split for split in base if split in final]
  figure = Figure(figsize=(4.2 * len(splits) + 0.4, SIZE[1]), layout="constrained")
  panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
  for axes, split in zip(panels, splits, strict=True):
    _style(axes)
    labels = ["all", *(name for name in base[split]["by_behavior"])]
    for offset, color, label, summary in (
      (-0.2, GREY, "before", base[split]),
      (0.2, BLUE, "after", final[split]),
    ):
      whole = {"mean": summary["reward_mean"], "ci95": summary["reward_ci95"]}
      found = [whole, *(summary["by_behavior"][name] for name in labels[1:])]
      means = np.array([entry["mean"] for entry in found])
      bounds = np.array([entry["ci95"] for entry in found]).T
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
  _style(axes)
  return figure, axes


def _style(axes: Axes) -> None:
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(axis="y", color="#dddddd", linewidth=0.6)
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


def _reward(axes: Axes, metrics: Metrics) -> bool:
  steps, means = _series(metrics, "reward")
  deviation_steps, deviations = _series(metrics, "reward_std")
  if np.array_equal(steps, deviation_steps):
    axes.fill_between(
      steps, means - deviations, means + deviations, color=BLUE, alpha=0.08, linewidth=0,
      label="± standard deviation",
    )  # fmt: skip
  drawn = _curve(axes, metrics, "reward", "training, sampled", BLUE)
  held_out = sorted({name for entry in metrics for name in entry if _is_held_out(name)})
  for color, name in zip((ORANGE, GREEN, RED, PURPLE), held_out, strict=False):
    at, values = _series(metrics, name)
    axes.plot(at, values, "o-", color=color, markersize=4, label=f"held out: {name.split('/')[1]}")
  axes.set_ylabel("reward")
  return drawn


def _is_held_out(name: str) -> bool:
  parts = name.split("/")
  return len(parts) == 3 and parts[0] == "eval" and parts[2] == "reward"


def _parts(axes: Axes, metrics: Metrics) -> bool:
  names = list(
    dict.fromkeys(
      name
      for entry in metrics
      for name in entry
      if name.startswith("rewards/") and name.endswith("/mean")
    )
  )
  drawn = [
    _curve(axes, metrics, name, name[len("rewards/") : -len("/mean")], CYCLE[i % len(CYCLE)])
    for i, name in enumerate(names)
  ]
  axes.set_ylabel("mean of each part")
  return any(drawn)


def _shown(axes: Axes, metrics: Metrics) -> bool:
  drawn = [
    _curve(axes, metrics, f"shown/{behavior}", behavior, color)
    for behavior, color in zip(BEHAVIORS, CYCLE, strict=False)
  ]
  axes.set_ylabel("share of completions")
  axes.set_ylim(0, 1)
  return any(drawn)


def _lengths(axes: Axes, metrics: Metrics) -> bool:
  low, high = (_series(metrics, f"completions/{end}_length") for end in ("min", "max"))
  if len(low[0]) and np.array_equal(low[0], high[0]):
    axes.fill_between(
      low[0], low[1], high[1], color=BLUE, alpha=0.1, linewidth=0, label="shortest to longest"
    )
  axes.set_ylabel("completion tokens")
  return _curve(axes, metrics, "completions/mean_length", "mean", BLUE)


def _entropy(axes: Axes, metrics: Metrics) -> bool:
  axes.set_ylabel("entropy, nats a token")
  drawn = _curve(axes, metrics, "entropy", "", BLUE)
  axes.set_ylim(bottom=0)
  return drawn


def _kl(axes: Axes, metrics: Metrics) -> bool:
  axes.set_ylabel("KL to the start, nats a token")
  return _curve(axes, metrics, "kl", "", BLUE)


def _clipped(axes: Axes, metrics: Metrics) -> bool:
  drawn = [
    _curve(axes, metrics, f"clip_ratio/{end}_mean", f"ratio {words}", color)
    for end, words, color in (("low", "below the band", BLUE), ("high", "above the band", ORANGE))
  ]
  cut = _curve(axes, metrics, "completions/clipped_ratio", "completions cut at the limit", RED)
  axes.set_ylabel("share")
  axes.set_ylim(bottom=0)
  return any(drawn) or cut


def _equal_groups(axes: Axes, metrics: Metrics) -> bool:
  axes.set_ylabel("share of groups")
  axes.set_ylim(0, 1)
  return _curve(axes, metrics, "frac_reward_zero_std", "", BLUE)


def _seconds(axes: Axes, metrics: Metrics) -> bool:
  phases = [phase for phase in PHASES if any(f"seconds/{phase}" in entry for entry in metrics)]
  if not phases:
    return False
  steps = np.array([entry["step"] for entry in metrics], dtype=float)
  seconds = np.array([[entry.get(f"seconds/{p}", 0.0) for entry in metrics] for p in phases])
  totals = np.nan_to_num(seconds).sum(axis=0)
  axes.stackplot(
    steps, np.nan_to_num(seconds), labels=phases, colors=[PHASES[p] for p in phases], step="mid"
  )
  axes.set_ylabel("seconds a step")
  top = OFF_SCALE * float(np.median(totals))
  off_scale = [(s, t) for s, t in zip(steps, totals, strict=True) if 0 < top < t]
  if off_scale:
    axes.set_ylim(0, top)
    longest = max(off_scale, key=lambda pair: pair[1])
    axes.set_title(
      f"{len(off_scale)} step(s) off the scale, the longest {longest[1]:.0f} s at step "
      f"{longest[0]:.0f} (compilation, or an evaluation)",
      fontsize=8,
      color=GREY,
    )
  return True


_CURVES: tuple[tuple[Plot, Callable[[Axes, Metrics], bool]], ...] = (
  (Plot("reward.png", "Reward of the sampled completions, and of held-out tasks."), _reward),
  (Plot("reward_parts.png", "Mean of each part of the reward."), _parts),
  (Plot("shown.png", "Behaviour that the completions showed, whatever was wanted."), _shown),
  (Plot("completion_length.png", "Completion length in tokens."), _lengths),
  (Plot("entropy.png", "Entropy of the policy. A fall towards 0 is a collapse."), _entropy),
  (Plot("kl.png", "KL divergence from the policy that training started from."), _kl),
  (Plot("clipped.png", "Share of tokens clipped by the loss, and of completions cut."), _clipped),
  (
    Plot("equal_groups.png", "Share of groups whose rewards are all equal: they teach nothing."),
    _equal_groups,
  ),
  (Plot("seconds.png", "Where the time of a step goes."), _seconds),
)
