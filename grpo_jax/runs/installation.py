"""What is installed, and where: the policy and presets of the package, its commit, the processor."""

import os
import platform
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


def processor() -> str:
  """The kind of processor: what the last bits of a sum on it depend on."""
  cpu = Path("/proc/cpuinfo")
  lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
  model = {
    line.partition(":")[2].strip() for line in lines if line.startswith(("model", "cpu fam"))
  }
  return " ".join(sorted(model)) or platform.processor()


def processor_and_cores() -> str:
  """The kind of processor and how many of its cores this process may use: XLA splits by them."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return f"{processor()}, {cores} cores"
