"""Import paths of version 0.1: they work, with a warning, until 0.3.0."""

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Mapping, Sequence

# Folder -> the modules of 0.1 that are in it now, under the last part of their name.
_FOLDERS: Mapping[str, str] = {
  "benchmarking": "profiling",
  "files": "hub json_text redaction",
  "models": "placement",
  "report": "plots scores tables",
  "rewards.matching": "rewards.possible_answers rewards.tool_call rewards.values",
  "rewards.parsing": "rewards.auto_parser rewards.parsed rewards.parser rewards.python_calls",
  "runs": "alarms checkpoints hosts installation",
  "sweeps": "grid sweep",
  "tasks": "schema data.batches data.jsonl data.rows data.summary text.chat text.tokenizer "
  "text.train_tokenizer",
  "tasks.synthetic": "data.procedural data.prompts data.purposes data.recipes data.tools",
}
# Old module -> where what it held is now; the first one that has a name gives it.
MOVED: Mapping[str, Sequence[str]] = {
  **{
    old: (f"{folder}.{old.rpartition('.')[2]}",)
    for folder, modules in _FOLDERS.items()
    for old in modules.split()
  },
  "algorithms": ("losses",),
  "data": ("tasks",),
  "data.procedural_requests": ("tasks.synthetic.procedural",),
  "data.synthetic": ("tasks.synthetic.splits",),
  "data.training_tools": ("tasks.synthetic.tools",),
  "data.unseen_tools": ("tasks.synthetic.tools",),
  "programs": ("grpo", "sampling"),
  "rewards.behaviour": ("rewards.behavior",),
  "rollout_log": ("runs.rollouts",),
  "rollout_scores": ("runs.rollouts",),
  "run": ("train", "tasks.sources"),
  "run_config": ("config", "runs.installation"),
  "run_folder": ("runs.folder", "files.atomic"),
  "stop_signals": ("runs.preemption",),
  "text": ("tasks",),
  "tracking": ("runs.trackers",),
  "training": ("train",),
}
RENAMED: Mapping[str, str] = {"summarise": "summarize"}


def old_name(name: str, old: str, homes: Sequence[str]) -> object:
  """What a module of 0.1 had under a name, from the first of the modules that have it now.

  Raises:
    AttributeError: none of them has it.
  """
  for home in homes:
    module = importlib.import_module(f"grpo_jax.{home}")
    if hasattr(module, RENAMED.get(name, name)):
      return getattr(module, RENAMED.get(name, name))
  raise AttributeError(f"module 'grpo_jax.{old}' has no attribute {name!r}; see docs/moving.md")


def warn(old: str, homes: Sequence[str]) -> None:
  """Says in whose code an old path stands, and what the new one is."""
  now = ", ".join(f"grpo_jax.{home}" for home in homes)
  warnings.warn(
    f"grpo_jax.{old} is now {now}; the old path ends with 0.3.0 (docs/moving.md)",
    DeprecationWarning,
    stacklevel=3,
  )


class OldPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds modules of `MOVED` and lets them take their names from the new ones."""

  def find_spec(
    self, name: str, path: object = None, target: object = None
  ) -> importlib.machinery.ModuleSpec | None:
    """The spec of an old module; None leaves the name to the other finders."""
    package, _, old = name.partition(".")
    if package != __package__ or old not in MOVED:
      return None
    return importlib.machinery.ModuleSpec(name, self, is_package=True)

  def exec_module(self, module: types.ModuleType) -> None:
    """Fills an old module: its names are looked up when they are asked for."""
    old = module.__name__.partition(".")[2]
    warn(old, MOVED[old])
    look_up = functools.partial(old_name, old=old, homes=MOVED[old])
    module.__getattr__ = look_up  # type: ignore[method-assign]


def install() -> None:
  """Makes the old paths work; called once, by the package itself."""
  if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
    sys.meta_path.insert(0, OldPaths())  # a stale file of an old checkout must not win
