"""Which pictures are drawn, and what is on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from grpo_jax.report import plots
from grpo_jax.report.plots import plot_curves, plot_gain


def make_metrics(steps: int) -> list[dict[str, float]]:
  return [
    {
      "step": step, "reward": 0.4 + step / 100, "reward_std": 0.2,
      "rewards/right_tool/mean": 0.6, "rewards/right_tool/std": 0.1,
      "completions/mean_length": 20, "completions/min_length": 5, "completions/max_length": 60,
      "completions/clipped_ratio": 0.01, "entropy": 0.4, "kl": 0.01 * step,
      "clip_ratio/low_mean": 0.0, "clip_ratio/high_mean": 0.01, "frac_reward_zero_std": 0.25,
      "seconds/sample": 1.0 if step else 40.0, "seconds/reward": 0.1, "seconds/update": 1.0,
      "seconds/other": 0.1, "shown/execute": 0.6, "shown/clarify": 0.2, "shown/refuse": 0.2,
    }
    for step in range(steps)
  ]  # fmt: skip


@pytest.mark.parametrize("steps", [1, 40])
def test_every_curve_is_drawn_from_the_first_step_on(tmp_path, steps):
  drawn = plot_curves(make_metrics(steps), tmp_path)
  assert [plot.file for plot in drawn] == [
    "reward.png", "reward_parts.png", "shown.png", "completion_length.png", "entropy.png", "kl.png",
    "clipped.png", "equal_groups.png", "seconds.png",
  ]  # fmt: skip
  for plot in drawn:
    with Image.open(tmp_path / plot.file) as image:
      assert image.size == (704, 396)


def test_a_curve_without_values_is_left_out(tmp_path):
  metrics = [{"step": s, "reward": 0.5, "kl": math.nan} for s in range(3)]
  assert [plot.file for plot in plot_curves(metrics, tmp_path)] == ["reward.png"]
  assert plot_curves([], tmp_path) == []


def axes_of(draw, metrics):
  _, axes = plots._figure()
  assert draw(axes, metrics)
  return axes


def test_smoothing_keeps_a_straight_line_straight_and_its_ends_in_place():
  metrics = [{"step": s, "reward": 1.0} for s in range(50)]
  raw, smooth = axes_of(plots._reward, metrics).lines
  assert np.array_equal(raw.get_ydata(), np.ones(50))
  assert smooth.get_ydata() == pytest.approx(np.ones(50))
  assert smooth.get_xdata()[0] == 0 and smooth.get_xdata()[-1] == 49


def test_gaps_are_skipped_and_held_out_scores_are_marked():
  metrics = make_metrics(10)
  metrics[4]["reward"] = math.nan
  metrics[9]["eval/unseen/reward"] = 0.7
  lines = axes_of(plots._reward, metrics).lines
  assert 4 not in lines[0].get_xdata()
  assert lines[-1].get_label() == "held out: unseen"
  assert list(lines[-1].get_xdata()) == [9] and list(lines[-1].get_ydata()) == [0.7]


def test_a_step_that_compiled_does_not_flatten_the_others():
  axes = axes_of(plots._seconds, make_metrics(20))
  assert axes.get_ylim()[1] == pytest.approx(3 * 2.2)
  assert "longest 41 s at step 0" in axes.get_title()


def test_gain_shows_the_splits_that_both_evaluations_have(tmp_path):
  found = {"mean": 0.5, "ci95": [0.4, 0.6], "n": 9}
  summary = {
    "n": 9, "reward_mean": 0.5, "reward_ci95": [0.4, 0.6], "by_behavior": {"execute": found},
  }  # fmt: skip
  plot = plot_gain({"a": summary, "b": summary}, {"a": summary}, tmp_path / "gain.png")
  with Image.open(tmp_path / plot.file) as one:
    width = one.size[0]
  plot_gain({"a": summary, "b": summary}, {"a": summary, "b": summary}, tmp_path / "two.png")
  with Image.open(tmp_path / "two.png") as two:
    assert two.size[0] > width
