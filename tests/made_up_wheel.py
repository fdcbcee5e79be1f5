"""Wheels that hold a part of some data, as small as pip accepts them."""

from __future__ import annotations

import zipfile
from pathlib import Path


def write_wheel(folder: Path, package: str, part: bytes) -> Path:
  """Writes the wheel of `name==version`, in `folder`, which is made if missing."""
  name, _, version = package.partition("==")
  module, described = name.replace("-", "_"), f"Name: {name}\nVersion: {version}\n"
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"{module}-{version}-py3-none-any.whl"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
    wheel.writestr(f"{module}/__init__.py", "raise SystemExit('nobody runs this')")
    wheel.writestr(f"{module}/data/part.bin", part)
    info = f"{module}-{version}.dist-info"
    wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\n{described}")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    wheel.writestr(f"{info}/RECORD", "")
  return path
