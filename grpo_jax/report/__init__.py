"""What a run shows: statistics, tables, plots and the page."""

from grpo_jax import _moved


def __getattr__(name: str) -> object:
  """The names of 0.1's `report.py`, with a warning, until 0.3.0."""
  found = _moved.old_name(name, "report", ["report.page"])
  _moved.warn("report", ["report.page"])
  return found
