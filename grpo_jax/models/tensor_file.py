"""Reading and writing safetensors files a slice at a time, so that no whole file is ever resident.

The format is eight bytes of header length, a JSON header and the raw tensors
(https://huggingface.co/docs/safetensors). The safetensors package maps the whole file or reads
whole tensors, either of which counts against host memory when a large checkpoint is sharded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
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
      except ValueError:
        raise ValueError(f"{path} is not a safetensors file: its header is not JSON") from None
    header.pop("__metadata__", None)
    self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    self.dtypes = {name: entry["dtype"] for name, entry in header.items()}
    for name, entry in header.items():
      start, end = entry["data_offsets"]
      wanted = DTYPES.get(entry["dtype"])
      if wanted and end - start != int(np.prod(entry["shape"], dtype=np.int64)) * wanted.itemsize:
        raise ValueError(f"{path} is damaged: {name} does not take up what its shape needs")
    self._starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < 8 + length + end:
      raise ValueError(
        f"{path} is cut short: {size:,} bytes of {8 + length + end:,}; fetch it again"
      )

  def rows(self, name: str, start: int, stop: int) -> np.ndarray:
    """Reads a range of a tensor's first axis and nothing else; shape [stop - start, ...]."""
    shape, dtype = self.shapes[name], DTYPES[self.dtypes[name]]
    width = int(np.prod(shape[1:], dtype=np.int64))
    offset = self._starts[name] + start * width * dtype.itemsize
    flat = np.fromfile(self.path, dtype, (stop - start) * width, offset=offset)
    return flat.reshape(stop - start, *shape[1:])


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
  unfinished = path.with_name(path.name + ".unfinished")
  with unfinished.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name, tensor in tensors:
      shape, dtype = specs[name]
      if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}{tensor.shape}; expected {dtype}{shape}")
      np.ascontiguousarray(tensor).tofile(file)
    file.flush()
    os.fsync(file.fileno())
  unfinished.replace(path)
