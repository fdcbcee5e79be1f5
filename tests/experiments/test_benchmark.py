"""The benchmark script from its flags to its JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax.benchmarking.floor import Rates, floor_of
from grpo_jax.benchmarking.flops import step_work
from grpo_jax.benchmarking.shapes import Workload
from grpo_jax.models import DecoderConfig

SCRIPT = Path(__file__).parents[2] / "experiments" / "benchmark.py"
SHAPE = DecoderConfig(64, 16, 24, 1, 2, 1, 8, tie_embeddings=True, eos_token_ids=(1,))


def benchmark(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
  # The rates are real ones, but of short rounds and a small array.
  driver = (
    "import runpy, sys, grpo_jax.benchmarking.floor as floor\n"
    "floor.ROUNDS, floor.BANDWIDTH_BYTES = 1, 2**22\n"
    "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
  )
  return subprocess.run(
    [sys.executable, "-c", driver, str(SCRIPT), *arguments],
    cwd=cwd, capture_output=True, text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("benchmark")
  (folder / "config.json").write_text(json.dumps(SHAPE.to_hf()))
  return folder


def test_a_small_shape_is_timed_and_set_against_its_floor(folder):
  done = benchmark(
    "--shape=config.json", "--prompts=2", "--prompt_tokens=6", "--group_size=2",
    "--completion_tokens=4", "--steps=2", "--out=found.json", "--profile", cwd=folder,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads((folder / "found.json").read_text())
  for name in ("sample_seconds", "update_seconds", "total_seconds"):
    assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"]
  work = step_work(SHAPE, Workload(2, 6, 2, 4), shared=True)
  assert found["flops"] == work.flops < found["flops_without_sharing"]
  floor = floor_of(work, Rates(**found["rates"]))
  assert found["floor_seconds"] == pytest.approx(floor.total)
  assert found["step_over_floor"] == pytest.approx(found["total_seconds"]["median"] / floor.total)
  assert found["tokens"] == 16 and found["equal_groups"] == 0
  assert 16 / found["total_seconds"]["max"] <= found["tokens_per_second"]
  assert found["tokens_per_second"] <= 16 / found["total_seconds"]["min"]
  assert 0 < found["compile_seconds"] < found["first_step_at_seconds"]
  assert 0.05 < found["peak_memory_gib"] < 8
  assert found["workload"]["group_size"] == 2 and found["peers"] == {}
  assert list((folder / "found").rglob("*.xplane.pb"))
  assert {"sample", "update", "reward"} <= set(
    (folder / "found" / "seconds.txt").read_text().split()
  )
  assert "times as long" in done.stdout and "found.json" in done.stdout


def test_real_prompts_count_tokens_up_to_the_end(folder):
  done = benchmark(
    "--realistic", "--prompts=2", "--group_size=2", "--completion_tokens=40", "--steps=1",
    "--json=real.json", cwd=folder,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads((folder / "real.json").read_text())
  # The embedded policy answers in full and stops.
  assert 4 * 3 < found["tokens"] < 4 * 40
  assert found["tokens_per_second"] == pytest.approx(
    found["tokens"] / found["total_seconds"]["median"]
  )
  assert 100 < found["workload"]["prompt_tokens"] <= 448 and found["temperature"] == 0.5
  assert "useful tokens/s" in done.stdout and "floor_seconds" not in found


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--shape=XL", "--shape=XL; expected S, M, Q, Q1.5 or a config.json that exists"),
    (
      "--realistic --shape=S",
      "--shape does not go with --realistic: its model and prompts are given",
    ),
    ("--compare=verl", "--compare=verl; expected some of trl, tunix, torch"),
  ],
)
def test_contradictions_end_in_one_sentence_before_any_work(folder, flag, message):
  done = benchmark(*flag.split(), cwd=folder)
  assert done.returncode == 1 and done.stderr.strip().splitlines()[-1] == f"benchmark: {message}"
  assert not (folder / "runs").exists()


def test_the_script_for_gpus_runs_on_a_cpu(tmp_path):
  """All of it, beside PyTorch, in small: it must work on the day that a GPU is there."""
  pytest.importorskip("peft")
  command = [
    *("bash", str(SCRIPT.with_name("benchmark_gpu.sh")), "--device=cpu", "--shape=S", "--steps=1"),
    *("--prompts=2", "--prompt_tokens=8", "--group_size=2", "--completion_tokens=3"),
    f"--out={tmp_path}",
  ]
  environment = {**os.environ, "PYTHON": sys.executable}
  run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stdout + run.stderr
  parity = json.loads((tmp_path / "parity-S.json").read_text())
  gaps = {name: mean for name, (mean, _) in parity["differences"].items()}
  assert gaps["trainer in float32, CPU in float32"] == 0
  assert 0 < gaps["trainer in bfloat16, CPU in float32"] < 0.1
  assert gaps["sampler and trainer in bfloat16"] < 0.05
  for rank in (0, 16):
    found = json.loads((tmp_path / f"step-S-lora{rank}.json").read_text())
    assert found["lora_rank"] == rank and found["dtype"] == "bfloat16"
    assert found["peers"]["torch"]["tokens"] == found["tokens"] == 2 * 2 * 3
    assert found["step_over_floor"] > 0
  assert "torch" in run.stdout
