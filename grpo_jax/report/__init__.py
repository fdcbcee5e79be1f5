"""What a run shows: statistics, tables, plots and the page."""

from __future__ import annotations

import importlib
import warnings


def __getattr__(name: str) -> object:
  """The names of 0.1's `report.py`, with a warning, until 0.3.0."""
  page = importlib.import_module("grpo_jax.report.page")
  if name.startswith("_") or not hasattr(page, name):
    raise AttributeError(f"module 'grpo_jax.report' has no attribute {name!r}")
  warnings.warn(
    f"{name} is now in grpo_jax.report.page; the old path ends with 0.3.0 (docs/moving.md)",
    DeprecationWarning,
    stacklevel=2,
  )
  return getattr(page, name)
