"""The floors of the house: what may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "grpo_jax"

# A folder, or a file on the ground floor, imports only from lower floors, or from itself. New ones
# take a place here.
FLOORS = (
  {"files", "settings", "types", "_moved"},
  {"tasks", "models", "losses"},
  {"rewards", "sharding"},
  {"runs"},
  {"config", "report"},
  {"sampling", "optimizers"},
  {"grpo", "sft", "evaluate"},
  {"planner", "benchmarking"},
  {"train", "sweeps"},
  {"replay", "command_line"},
  {"results"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
WITHOUT_JAX = {"files", "settings", "tasks", "rewards", "report"}
WITH_FLAX = {"models", "types"}
WITH_FLAGS = {"command_line"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}

FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def unit_of(module: str) -> str:
  """The room of a dotted module of the package: its first part below `grpo_jax`."""
  return f"{module}.".split(".")[1]


def imports_of(source: str, path: Path) -> list[str]:
  """Every dotted module that a file imports, wherever in the file the import stands."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      module = node.module or ""
      if node.level:  # relative: from the folder that the dots point to
        parts = path.relative_to(ROOT).parts[: -node.level]
        module = ".".join((*parts, module) if module else parts)
      # `from grpo_jax import tasks` imports a module, as `from grpo_jax.tasks import render` does.
      found += [f"{module}.{alias.name}" for alias in node.names]
  return found


def problems_of(path: Path, source: str) -> list[str]:
  """What is wrong with the imports of one file of the package."""
  relative = path.relative_to(PACKAGE)
  unit = relative.parts[0].removesuffix(".py")
  if unit in ("__init__", "_moved"):
    unit = ""
  elif unit not in FLOOR_OF:
    return [f"{relative}: {unit} is on no floor; give it a place in FLOORS"]
  problems = []
  for module in imports_of(source, path):
    library = module.split(".")[0]
    ours = library == "grpo_jax" and module != "grpo_jax.__version__"
    if ours and unit and unit_of(module) != unit:
      target = unit_of(module)
      if FLOOR_OF.get(target, 99) >= FLOOR_OF[unit]:
        problems.append(f"{relative} (floor {FLOOR_OF[unit]}) imports {module}: not a lower floor")
    if library in ("jax", "jaxlib", "flax", "optax", "orbax", "chex") and unit in WITHOUT_JAX:
      problems.append(f"{relative} imports {module}: {unit} is free of jax")
    if library == "flax" and unit not in WITH_FLAX:
      problems.append(f"{relative} imports {module}: flax stays in {', '.join(sorted(WITH_FLAX))}")
    if module.startswith(("absl.flags", "absl.app")) and unit not in WITH_FLAGS:
      problems.append(
        f"{relative} imports {module}: flags are defined and read only in command_line.py and "
        "experiments/"
      )
    if library in ("experiments", "tests"):
      problems.append(f"{relative} imports {module}: nobody imports scripts or tests")
  return problems


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_only_downwards(path):
  assert not problems_of(path, path.read_text(encoding="utf-8"))


def test_rewards_and_data_load_without_jax():
  # What they import may import jax in turn: this sees it, the rules above do not.
  program = (
    "import sys, grpo_jax.tasks, grpo_jax.rewards, grpo_jax.report.page\n"
    "sys.exit(', '.join(sorted({'jax', 'flax', 'torch'} & set(sys.modules))) or None)"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_do_not_import_each_other(path):
  stems = {script.stem for script in SCRIPTS} - {path.stem}
  imported = {module.split(".")[0] for module in imports_of(path.read_text(encoding="utf-8"), path)}
  assert not imported & (stems | {"experiments"})


def test_names_say_what_is_inside():
  parts = {
    part.removesuffix(".py")
    for path in [*FILES, *SCRIPTS, *TESTS]
    for part in path.relative_to(ROOT).parts
  }
  assert not parts & VAGUE_NAMES
  classes = [
    node.name
    for path in [*FILES, *SCRIPTS]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.ClassDef) and node.name.lower().endswith(("manager", "helper", "utils"))
  ]
  assert not classes


@pytest.mark.parametrize(
  ("file", "source"),
  [
    ("tasks/jsonl.py", "import jax.numpy as jnp"),
    ("rewards/tiers.py", "def f():\n  from jax import lax"),
    ("tasks/rows.py", "from grpo_jax.rewards import score"),
    ("rewards/tiers.py", "from ..runs import hosts"),
    ("rewards/tiers.py", "from .. import runs"),
    ("models/decoder.py", "import grpo_jax.sampling"),
    ("sampling.py", "from grpo_jax import train"),
    ("sampling.py", "import flax.linen as nn"),
    ("train.py", "from absl import flags"),
    ("train.py", "from experiments import train_grpo"),
    ("brand_new.py", ""),
  ],
)
def test_the_rules_catch_what_they_forbid(file, source):
  assert problems_of(PACKAGE / file, source)


@pytest.mark.parametrize(
  ("file", "source"),
  [
    (
      "rewards/tiers.py",
      "from grpo_jax.tasks.schema import ToolTask\nfrom grpo_jax.rewards import batch",
    ),
    ("rewards/tiers.py", "from .parser import parse"),
    ("train.py", "from grpo_jax import grpo, files\nfrom absl import logging"),
    ("models/decoder.py", "import flax.linen as nn\nimport jax"),
    ("command_line.py", "from absl import app, flags"),
  ],
)
def test_the_rules_allow_what_the_house_needs(file, source):
  assert not problems_of(PACKAGE / file, source)
