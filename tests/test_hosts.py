"""Two real processes of four CPU devices each, as two hosts: the same run, and what if one dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import host_scores
import numpy as np
import pytest
from small_run import command

from grpo_jax.models import load_pretrained
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.runs.folder import whole_lines
from grpo_jax.runs.preemption import EXIT_STOPPED

MESH = "--mesh=data:2,fsdp:4"
MORE = (
  MESH, "--prompts_per_step=8", "--micro_batch_prompts=8", "--inner_updates=1", "--eval_every=0",
)  # fmt: skip


def environment(devices: int) -> dict[str, str]:
  # NPROC: see mesh_step.py.
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "64"}


def free_port() -> int:
  with socket.socket() as found:
    found.bind(("localhost", 0))
    return found.getsockname()[1]


def start_pair(settings, run_dir: Path, steps: int, *more: str) -> list[subprocess.Popen]:
  port = free_port()
  hosts = lambda i: (f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={i}")
  return [
    subprocess.Popen(
      command(settings, run_dir, steps, *MORE, *more, *hosts(i)),
      env=environment(4) | {"HOST": str(i)},
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for i in range(2)
  ]  # fmt: skip


def finish(pair: list[subprocess.Popen], seconds: float) -> list[str]:
  try:
    return [process.communicate(timeout=seconds)[0] for process in pair]
  finally:
    for process in pair:
      process.kill()


def without_times(folder: Path) -> list[dict[str, float]]:
  skip = ("seconds/", "step_time", "tokens_per_second")
  return [
    {name: value for name, value in line.items() if not name.startswith(skip)}
    for _, line in whole_lines(folder / "metrics.jsonl")
  ]


def wait_for_steps(folder: Path, pair: list[subprocess.Popen], steps: int) -> None:
  deadline = time.monotonic() + 240
  while len(whole_lines(folder / "metrics.jsonl")) < steps:
    assert all(process.poll() is None for process in pair) and time.monotonic() < deadline
    time.sleep(0.02)


def kill_a_host(settings, folder: Path, victim: int) -> int:
  """Starts a run on two hosts and kills one, which must end the other; the steps that were done."""
  pair = start_pair(settings, folder, 10_000)
  try:
    wait_for_steps(folder, pair, 3)
    pair[victim].send_signal(signal.SIGKILL)
    died = time.monotonic()
    text, _ = pair[1 - victim].communicate(timeout=60)
    assert time.monotonic() - died < 60
    assert pair[1 - victim].returncode not in (0, None)
    assert "another host" in text or "another task" in text, text[-3000:]
  finally:
    finish(pair, 10)
  return len(whole_lines(folder / "metrics.jsonl"))


@pytest.fixture(scope="module")
def resumed(settings, tmp_path_factory):
  """A run whose first host was killed and which two hosts finished: folder, steps, both outputs."""
  folder = tmp_path_factory.mktemp("pair") / "run"
  steps = kill_a_host(settings, folder, 0) + 2
  pair = start_pair(settings, folder, steps)
  said = finish(pair, 300)
  assert [process.returncode for process in pair] == [0, 0], "\n".join(t[-3000:] for t in said)
  return folder, steps, said


def run_alone(settings, folder: Path, steps: int) -> Path:
  """The run in one process, on eight devices."""
  done = subprocess.run(
    command(settings, folder, steps, *MORE), env=environment(8), capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


@pytest.fixture(scope="module")
def alone(settings, resumed, tmp_path_factory):
  """A run of as many steps in one process."""
  return run_alone(settings, tmp_path_factory.mktemp("alone") / "run", resumed[1])


def assert_equal_runs(one: Path, two: Path, steps: int) -> None:
  assert len(without_times(one)) == steps
  for a, b in zip(without_times(one), without_times(two), strict=True):
    assert a.keys() == b.keys()
    for name in a:
      assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), (a["step"], name)
  for step in range(steps):
    name = f"rollouts/step_{step:06d}.jsonl"
    rows = [[json.loads(x) for x in (run / name).read_text().splitlines()] for run in (one, two)]
    for a, b in zip(*rows, strict=True):
      assert (a["id"], a["completions"], a["rewards"]) == (b["id"], b["completions"], b["rewards"])
  models = [load_pretrained(run / "model")[1]["layers"]["gate"]["kernel"] for run in (one, two)]
  np.testing.assert_allclose(*models, atol=1e-5)


def test_two_hosts_that_resume_give_the_metrics_of_one_that_never_stopped(alone, resumed):
  folder, steps, said = resumed
  assert "Reward before and after" in said[0] and "Reward before and after" not in said[1]
  assert_equal_runs(alone, folder, steps)


def test_two_hosts_score_as_one_and_both_know_of_the_others_failure(tmp_path):
  file, port, pair = tmp_path / "mine.py", free_port(), []
  file.write_text(host_scores.REWARD)
  for i in range(2):
    (tmp_path / str(i)).mkdir()
    arguments = [f"localhost:{port}", str(i), str(file), str(tmp_path / str(i))]
    pair.append(
      subprocess.Popen(
        [sys.executable, host_scores.__file__, *arguments],
        env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      )
    )  # fmt: skip
  try:
    said = [process.communicate(timeout=120) for process in pair]
  finally:
    for process in pair:
      process.kill()
  assert [process.returncode for process in pair] == [0, 0], "\n".join(e[-3000:] for _, e in said)
  first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
  assert first == second
  for normalise, found in first.items():
    alone = json.loads(json.dumps(host_scores.scores(str(file), normalise)))
    assert found == alone, normalise
    breakdowns, failures, traceback = found
    assert failures == {"rewards/failures": 1, "rewards/failures/length/reward_error": 1}
    assert "ValueError: too long" in traceback and len(breakdowns) == 9
    mean = np.mean([breakdown["total"] for breakdown in breakdowns])
    assert (abs(mean) < 1e-12) == (normalise != "none")
  assert (tmp_path / "0" / "profile" / "seconds.txt").exists()
  assert not (tmp_path / "1" / "profile" / "seconds.txt").exists()


SECOND_FAILS = """
import os

def second_fails(completion, task):
  if os.environ["HOST"] == "1": raise ValueError("on the second host")
  return len(completion) % 3
"""


def test_a_signal_to_one_host_stops_both_at_the_same_step(settings, tmp_path):
  folder, file = tmp_path / "run", tmp_path / "mine.py"
  file.write_text(SECOND_FAILS)
  reward = f"--reward={file}:second_fails"
  pair = start_pair(settings, folder, 10_000, "--checkpoint_every=5000", reward)
  try:
    wait_for_steps(folder, pair, 3)
    pair[1].send_signal(signal.SIGTERM)
  finally:
    said = finish(pair, 60)
  assert [process.returncode for process in pair] == [EXIT_STOPPED] * 2, said[0][-3000:]
  with Checkpoints(folder, read_only=True) as checkpoints:
    assert checkpoints.newest_good() == len(whole_lines(folder / "metrics.jsonl"))
  # What failed on the second host only is told and kept by the first, which writes every file.
  assert "ValueError: on the second host" in (folder / "first_reward_failure.txt").read_text()
  assert "ValueError: on the second host" in said[0]
  assert "ValueError: on the second host" not in said[1]


def test_what_two_hosts_began_goes_on_in_one(settings, alone, tmp_path):
  folder = tmp_path / "run"
  steps = kill_a_host(settings, folder, 1) + 2
  run_alone(settings, folder, steps)  # restored on another layout
  ours, theirs = without_times(folder), without_times(alone)
  assert len(ours) == steps and len(theirs) > 3
  for a, b in zip(ours, theirs, strict=False):  # each was killed after some step of its own
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5, abs=1e-6)
