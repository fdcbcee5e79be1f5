"""The growth of a step's time, measured at the smallest sizes there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from grpo_jax.benchmarking.growth import LAYOUTS, Point, base_of, points_along

SCRIPT = Path(__file__).parents[2] / "experiments" / "benchmark_growth.py"
SIZES = ("--group_size=2", "--prompt_tokens=6", "--completion_tokens=3", "--width=128",
         "--prompts=1", "--layers=1", "--json=found.json", "--plot=growth.png")  # fmt: skip


def growth(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, str(SCRIPT), *SIZES, *arguments], cwd=folder, capture_output=True, text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip


def test_axes_cross_in_their_middles():
  axes = {
    "group_size": (2, 4, 8), "prompt_tokens": (16, 32), "completion_tokens": (5,),
    "width": (128, 256, 384),
  }  # fmt: skip
  base = base_of(axes, prompts=2, layers=1)
  assert base == Point(2, 4, 32, 5, 256, 1)
  along = points_along(axes, base)
  assert [point.group_size for point in along["group_size"]] == [2, 4, 8]
  assert all(base in points for points in along.values())
  assert along["width"][2].config.num_heads == 6
  small = along["width"][0]
  # Embedding; q, k, v with biases, o, the MLP and two norms; the last norm.
  assert small.parameters == 4096 * 128 + 128 * 3 * 128 + 3 * 128 + 128**2 + 3 * 128 * 512 + 3 * 128


def test_points_are_measured_once_and_drawn(tmp_path):
  first = growth(tmp_path, "--steps=1")
  assert first.returncode == 0, first.stderr
  found = json.loads((tmp_path / "found.json").read_text())["points"]
  assert [row["layout"] for row in found] == list(LAYOUTS)
  for row in found:
    assert 0 < row["sample"]["median"] + row["update"]["median"] <= row["total"]["median"]
  with Image.open(tmp_path / "growth.png") as image:
    assert image.size == (968, 726)
  # The second measurement is lost, as if the machine had gone down: it alone is done again.
  text = json.loads((tmp_path / "found.json").read_text())
  text["points"].pop()
  (tmp_path / "found.json").write_text(json.dumps(text))
  again = growth(tmp_path, "--steps=1")
  assert again.returncode == 0 and "[1/1]" in again.stdout
  assert json.loads((tmp_path / "found.json").read_text())["points"][0] == found[0]


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--width=100", "--width must be multiples of 128"),
    ("--group_size=1", "--group_size=1 must be at least 2"),
  ],
)
def test_sizes_out_of_range_are_refused_before_any_work(tmp_path, flag, message):
  done = growth(tmp_path, flag)
  assert done.returncode == 1 and f"benchmark_growth: {message}" in done.stderr
  assert not (tmp_path / "found.json").exists()
