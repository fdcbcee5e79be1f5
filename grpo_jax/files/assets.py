"""Tables of words and numbers that lie beside the code."""

import tomllib
from importlib import resources
from typing import Any


def read_asset(name: str) -> dict[str, Any]:
  """The table in `grpo_jax/assets/<name>.toml`."""
  file = resources.files("grpo_jax") / "assets" / f"{name}.toml"
  return tomllib.loads(file.read_text(encoding="utf-8"))
