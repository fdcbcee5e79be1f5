"""What no flag takes is refused by every script: `--ordered_calls false` would mean true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SCRIPTS = sorted(path.stem for path in EXPERIMENTS.glob("*.py"))
NEEDED = {
  "check_reward": ["--data=tasks.jsonl"],
  "export_hf": ["--model=model", "--out=out"],
  "fetch_model": ["--name=smollm2-135m"],
  "replay": ["--run=run", "--step=0"],
  "reproduce": ["results"],
  "sweep_batch": ["--dry_run"],
  "sweep_reward": ["--dry_run"],
}
# Importing JAX takes seconds: one process does it, and a fork of it is each script's.
DRIVER = """
import json, os, runpy, signal, sys, tempfile

import jax
import grpo_jax.sweeps.sweep, grpo_jax.train

found = {}
for script, arguments in json.loads(sys.argv[1]).items():
  with tempfile.TemporaryFile() as said:
    child = os.fork()
    if not child:
      signal.alarm(20)  # one that goes on to work has failed
      os.dup2(said.fileno(), 1)
      os.dup2(said.fileno(), 2)
      sys.argv = [script, *arguments]
      try:
        runpy.run_path(script, run_name="__main__")
      except SystemExit as end:
        if isinstance(end.code, str):
          print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
      os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said.seek(0)
    found[script] = status, said.read().decode()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  calls = {
    str(EXPERIMENTS / f"{name}.py"): [*NEEDED.get(name, []), "left_over"] for name in SCRIPTS
  }
  done = subprocess.run(
    [sys.executable, "-c", DRIVER, json.dumps(calls)],
    capture_output=True, text=True, cwd=tmp_path_factory.mktemp("work"),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return {Path(path).stem: found for path, found in json.loads(done.stdout).items()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_no_flag_takes_is_refused(outcomes, script):
  status, said = outcomes[script]
  assert status == 1, said
  assert "left_over" in said and "Traceback" not in said
  if not script.startswith("sweep"):  # these pass it on, and say that it cannot be
    assert "unexpected arguments: left_over" in said
