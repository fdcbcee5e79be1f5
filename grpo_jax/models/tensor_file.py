"""Reading and writing safetensors files a slice at a time, so that no whole file is ever resident.

The format is eight bytes of header length, a JSON header and the raw tensors
(https://huggingface.co/docs/safetensors). The safetensors package maps the whole file or reads
whole tensors, either of which counts against host memory when a large checkpoint is sharded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from grpo_jax.files.atomic import replaced

DTYPES: dict[str, np.dtype] = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Bytes of a number, also of types that no weight here has.
_SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {
  **{name: 1 for name in ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3")},
  **{"I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8, "F64": 8},
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000


class TensorFile:
  """One safetensors file, open for reading.

  Attributes:
    path: where it lies.
    shapes: the shape of each tensor, by name.
    dtypes: the stored type of each tensor as the format spells it (`F32`, `BF16`, ...).
  """

  def __init__(self, path: Path):
    """Reads the header only.

    Raises:
      ValueError: the file is cut short or is not a safetensors file.
    """
    self.path = path
    size = path.stat().st_size
    with path.open("rb") as file:
      length = int.from_bytes(file.read(8), "little")
      if size < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"{path} is not a whole safetensors file; fetch it again")
      try:
        header = json.loads(file.read(length))
      except (ValueError, RecursionError):
        raise ValueError(f"{path} is not a safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
      raise ValueError(f"{path} is not a safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
      if fault := _fault(entry):
        raise ValueError(f"{path} is damaged: {name} {fault}")
    end = 0
    # As in the format's own reader, tensors share no byte and leave none out.
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
      start, stop = entry["data_offsets"]
      if start != end:
        raise ValueError(
          f"{path} is damaged: {name} begins at byte {start} of the data, expected {end}"
        )
      end = stop
    whole = 8 + length + end
    if size < whole:
      raise ValueError(f"{path} is cut short: {size:,} bytes of {whole:,}; fetch it again")
    if size > whole:
      raise ValueError(f"{path} is damaged: {size - whole:,} bytes after its last tensor")
    self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    self.dtypes = {name: entry["dtype"] for name, entry in header.items()}
    self._starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}

  def rows(self, name: str, start: int, stop: int) -> np.ndarray:
    """Reads a range of a tensor's first axis and nothing else; shape [stop - start, ...]."""
    shape, dtype = self.shapes[name], DTYPES[self.dtypes[name]]
    width = int(np.prod(shape[1:], dtype=np.int64))
    offset = self._starts[name] + start * width * dtype.itemsize
    flat = np.fromfile(self.path, dtype, (stop - start) * width, offset=offset)
    return flat.reshape(stop - start, *shape[1:])


def _fault(entry: Any) -> str:
  """What is wrong with a tensor's entry in a header, or the empty string."""
  if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
    return "is no object with dtype, shape and data_offsets"
  dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  counts = lambda value: (
    isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
  )
  if not isinstance(dtype, str):
    return f"has the dtype {dtype!r:.100}, expected text"
  if not counts(shape):
    return f"has the shape {shape!r:.100}, expected a list of sizes"
  if not counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
    return f"has the data_offsets {offsets!r:.100}, expected its begin and its end"
  size = _SIZES.get(dtype)
  if size and offsets[1] - offsets[0] != math.prod(shape) * size:
    return "does not take up what its shape needs"
  return ""


def write_tensors(
  path: Path,
  specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
  """Writes one safetensors file tensor by tensor; it appears under its name when it is whole.

  Args:
    path: the file to write.
    specs: shape and dtype of each tensor, in the file's order.
    tensors: the tensors, lazily, in the same order.
  """
  header: dict[str, object] = {"__metadata__": {"format": "pt"}}
  offset = 0
  for name, (shape, dtype) in specs.items():
    end = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
    offset = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with replaced(path) as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name, tensor in tensors:
      shape, dtype = specs[name]
      if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}{tensor.shape}; expected {dtype}{shape}")
      np.ascontiguousarray(tensor).tofile(file)
