"""What the README says can be done, can be done."""

from __future__ import annotations

import functools
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax.grpo import grpo_step

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [
  line
  for block in BLOCKS
  for line in block.replace("\\\n", " ").splitlines()
  if re.match(r"(python|make|pip) ", line)
]
# What the scripts define, by running them up to `main`: most flags are made from settings.
DRIVER = """
import json, runpy, sys
from absl import flags

found = {}
for script in sys.argv[1:]:
  for name in list(flags.FLAGS):
    delattr(flags.FLAGS, name)
  runpy.run_path(script, run_name="script")
  found[script] = list(flags.FLAGS)
print(json.dumps(found))
"""
ABSL_FLAGS = {"help", "flagfile"}


@functools.cache
def flags_of_scripts() -> dict[str, list[str]]:
  """The flags of every script, by its path from the root."""
  scripts = [str(path.relative_to(ROOT)) for path in (ROOT / "experiments").glob("*.py")]
  command = [sys.executable, "-c", DRIVER, *scripts]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def flags_of(script: str) -> set[str]:
  """The flags that a script defines."""
  return set(flags_of_scripts()[script]) | ABSL_FLAGS


def unknown_flags(command: str) -> set[str]:
  """Flags of a `python experiments/...` command that its script does not define."""
  _, script, *arguments = shlex.split(command, comments=True)
  own, _, passed_on = " ".join(arguments).partition(" -- ")
  names = lambda text: set(re.findall(r"--(\w+)", text))
  unknown = names(own) - flags_of(script)
  return unknown | (names(passed_on) - flags_of("experiments/train_grpo.py"))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python")])
def test_scripts_and_flags_exist(command):
  assert not unknown_flags(command)


def test_the_flag_check_finds_what_does_not_exist():
  assert unknown_flags("python experiments/train_grpo.py --stepz=3 --seed=1") == {"stepz"}
  passed_on = "python experiments/sweep_batch.py --seed=1 -- --stepz=3"
  assert unknown_flags(passed_on) == {"stepz"}
  assert len(COMMANDS) > 12


def test_make_targets_and_extras_exist():
  makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
  for command in COMMANDS:
    if command.startswith("make"):
      assert f"\n{command.split()[1]}:" in makefile
  project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
  for extra in re.findall(r"'\.\[(\w+)\]'", README):
    assert f"\n{extra} = [" in project


def test_linked_files_exist():
  links = re.findall(r"\]\(([^)#:]+)\)", README)
  assert links and not [link for link in links if not (ROOT / link).exists()]


def test_the_quoted_step_is_the_step():
  source = inspect.getsource(grpo_step)
  quoted = next(block for block in BLOCKS if block.startswith("def grpo_step("))
  header, summary, *body = quoted.splitlines()
  assert [line for line in source.splitlines() if line][-len(body) :] == body
  assert summary.strip().strip('"') in source
  names = re.findall(r"\w+", header.removeprefix("def grpo_step"))
  assert names == list(inspect.signature(grpo_step).parameters)
