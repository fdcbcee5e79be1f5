"""What is installed: the policy and presets that come with the package, the commit of the code."""

import subprocess
from pathlib import Path

TINY_MODEL = Path(__file__).parents[1] / "assets" / "tiny"
PRESETS = Path(__file__).parents[1] / "assets" / "presets"


def git_commit() -> str:
  """The commit of the code, with `+` when there are changes, or the empty string outside git."""
  root = Path(__file__).parents[1]
  git = lambda *arguments: subprocess.run(
    ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
  ).stdout.strip()
  try:
    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
  except (OSError, subprocess.CalledProcessError):
    return ""
