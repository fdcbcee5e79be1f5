"""Import paths of version 0.1: they work, with a warning, until 0.3.0."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Mapping, Sequence

# Old module -> where what it held is now; the first one that has a name gives it.
MOVED: Mapping[str, Sequence[str]] = {
  "alarms": ("runs.alarms",),
  "algorithms": ("losses",),
  "checkpoints": ("runs.checkpoints",),
  "data": ("tasks",),
  "data.batches": ("tasks.batches",),
  "data.jsonl": ("tasks.jsonl",),
  "data.procedural": ("tasks.synthetic.procedural",),
  "data.procedural_requests": ("tasks.synthetic.procedural",),
  "data.prompts": ("tasks.synthetic.prompts",),
  "data.purposes": ("tasks.synthetic.purposes",),
  "data.recipes": ("tasks.synthetic.recipes",),
  "data.rows": ("tasks.rows",),
  "data.summary": ("tasks.summary",),
  "data.synthetic": ("tasks.synthetic.splits",),
  "data.tools": ("tasks.synthetic.tools",),
  "data.training_tools": ("tasks.synthetic.tools",),
  "data.unseen_tools": ("tasks.synthetic.tools",),
  "grid": ("sweeps.grid",),
  "hosts": ("runs.hosts",),
  "hub": ("files.hub",),
  "installation": ("runs.installation",),
  "json_text": ("files.json_text",),
  "placement": ("models.placement",),
  "plots": ("report.plots",),
  "profiling": ("benchmarking.profiling",),
  "programs": (
    "grpo",
    "sampling",
  ),
  "redaction": ("files.redaction",),
  "rewards.auto_parser": ("rewards.parsing.auto_parser",),
  "rewards.behaviour": ("rewards.behavior",),
  "rewards.parsed": ("rewards.parsing.parsed",),
  "rewards.parser": ("rewards.parsing.parser",),
  "rewards.possible_answers": ("rewards.matching.possible_answers",),
  "rewards.python_calls": ("rewards.parsing.python_calls",),
  "rewards.tool_call": ("rewards.matching.tool_call",),
  "rewards.values": ("rewards.matching.values",),
  "rollout_log": ("runs.rollouts",),
  "rollout_scores": ("runs.rollouts",),
  "run": (
    "train",
    "tasks.sources",
  ),
  "run_config": (
    "config",
    "runs.installation",
  ),
  "run_folder": (
    "runs.folder",
    "files.atomic",
  ),
  "schema": ("tasks.schema",),
  "scores": ("report.scores",),
  "stop_signals": ("runs.preemption",),
  "sweep": ("sweeps.sweep",),
  "tables": ("report.tables",),
  "text": ("tasks",),
  "text.chat": ("tasks.chat",),
  "text.tokenizer": ("tasks.tokenizer",),
  "text.train_tokenizer": ("tasks.train_tokenizer",),
  "tracking": ("runs.trackers",),
  "training": ("train",),
}


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
    homes = MOVED[old]
    warnings.warn(
      f"grpo_jax.{old} is now {', '.join(f'grpo_jax.{home}' for home in homes)}; the old path ends "
      "with 0.3.0 (docs/moving.md)",
      DeprecationWarning,
      stacklevel=2,
    )

    def look_up(name: str) -> object:
      for home in homes:
        found = importlib.import_module(f"grpo_jax.{home}")
        if hasattr(found, name):
          return getattr(found, name)
      raise AttributeError(f"module 'grpo_jax.{old}' has no attribute {name!r}; see docs/moving.md")

    module.__getattr__ = look_up  # type: ignore[method-assign]


def install() -> None:
  """Makes the old paths work; called once, by the package itself."""
  if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
    sys.meta_path.insert(0, OldPaths())  # a stale file of an old checkout must not win
