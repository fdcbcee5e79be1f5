"""Headers of safetensors files: what is wrong with one is a sentence that names the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from grpo_jax.models.tensor_file import TensorFile

DATA = bytes(range(32))


def write(path, header, data=DATA):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)
  return path


def entry(shape=(8,), offsets=(0, 32), dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
  ("header", "fault"),
  [
    (b"{", "not a safetensors file: its header is not JSON"),
    (b"\xff", "its header is not JSON"),
    (b"[" * 100_000, "its header is not JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "its header is not JSON"),
    ([], "its header is no JSON object"),
    (None, "its header is no JSON object"),
    ({"a": None}, "damaged: a is no object with"),
    ({"a": {}}, "damaged: a is no object with"),
    ({"a": {"dtype": "F32", "shape": [8]}}, "damaged: a is no object with"),
    ({"a": entry(dtype=4)}, "has the dtype 4"),
    ({"a": entry(dtype=["F32"])}, "has the dtype"),
    ({"a": entry(shape=8)}, "has the shape 8"),
    ({"a": entry(shape="8")}, "has the shape '8'"),
    ({"a": entry(shape=["8"])}, "has the shape"),
    ({"a": entry(shape=[8.0])}, "has the shape"),
    ({"a": entry(shape=[True, 8])}, "has the shape"),
    ({"a": entry(shape=[-2, -4])}, "has the shape"),
    ({"a": entry(shape=[10**30])}, "does not take up what its shape needs"),
    ({"a": entry(shape=[2**62, 4])}, "does not take up what its shape needs"),
    ({"a": entry(offsets=None)}, "has the data_offsets None"),
    ({"a": entry(offsets=[0])}, "has the data_offsets"),
    ({"a": entry(offsets=[0, 16, 32])}, "has the data_offsets"),
    ({"a": entry(offsets=[0, "32"])}, "has the data_offsets"),
    ({"a": entry(offsets=[32, 0])}, "has the data_offsets"),
    ({"a": entry(offsets=[-8, 24])}, "has the data_offsets"),
    ({"a": entry([10**30], [0, 10**30], dtype="I8")}, "cut short"),
    ({"a": entry([4], [16, 32])}, "a begins at byte 16 of the data, expected 0"),
    ({"a": entry(), "b": entry([2], [0, 8])}, "a begins at byte 0 of the data, expected 8"),
    ({"a": entry([4], [0, 16])}, "16 bytes after its last tensor"),
  ],
)
def test_a_malformed_header_is_refused_with_the_name_of_the_file(tmp_path, header, fault):
  path = write(tmp_path / "model.safetensors", header)
  with pytest.raises(ValueError) as caught:
    TensorFile(path)
  assert str(caught.value).startswith(str(path)) and fault in str(caught.value)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers(-1, 40) | st.floats() | st.sampled_from(["F32", "F16"]),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
  max_leaves=4,
)
SIZES = st.lists(st.integers(0, 9), max_size=2)
OFFSETS = st.tuples(*[st.sampled_from([0, 16, 32])] * 2)
ENTRIES = st.builds(
  entry, SIZES | JSON, OFFSETS | JSON, st.sampled_from(["F32", "F16", "I64"]) | JSON
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), ENTRIES | JSON) | JSON)
def test_whatever_the_header_says_is_refused_or_read_as_the_safetensors_package_does(
  tmp_path_factory, header
):
  path = write(tmp_path_factory.getbasetemp() / "any.safetensors", header)
  try:
    file = TensorFile(path)
  except ValueError as error:
    assert str(error).startswith(str(path))
    with pytest.raises((safetensors.SafetensorError, KeyError)):
      # A type that it knows and we do not is refused later, with all others of the checkpoint.
      safetensors.deserialize(path.read_bytes())
    return
  found = dict(safetensors.deserialize(path.read_bytes()))
  assert found.keys() == file.shapes.keys()
  for name in found:
    assert list(file.shapes[name]) == found[name]["shape"]
    if file.dtypes[name] != "I64" and file.shapes[name]:
      ours = file.rows(name, 0, file.shapes[name][0])
      assert ours.tobytes() == bytes(found[name]["data"])


def test_tensors_of_no_elements_take_no_place(tmp_path):
  path = tmp_path / "model.safetensors"
  path.write_bytes(save({"a": np.ones((0, 3), np.float32), "b": np.ones(2, np.float32)}))
  file = TensorFile(path)
  assert file.rows("a", 0, 0).shape == (0, 3) and file.rows("b", 0, 2).tolist() == [1, 1]
