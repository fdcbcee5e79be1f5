"""A checkpoint folder: which file holds each tensor, and whether they are the right ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.parameters import Tensor
from grpo_jax.models.tensor_file import DTYPES, TensorFile


def open_weights(folder: Path) -> dict[str, TensorFile]:
  """The file that holds each tensor, by the tensor's name."""
  index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
  if single.is_file():
    paths = [single]
  elif index.is_file():
    found = read_json(index)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
      raise ValueError(f'{index} has no "weight_map" from tensors to the names of files')
    # Names only: an index must not lead out of its folder.
    paths = [folder / Path(name).name for name in sorted(set(places.values()))]
  else:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
      raise FileNotFoundError(
        f"{folder} holds {pickles[0]} but no safetensors: pickled weights can run code when they "
        "are loaded, so they are never read; convert them with transformers' save_pretrained"
      )
    # Of a hub id, pickles are not even fetched, so that they cannot be named here.
    raise FileNotFoundError(
      f"{folder} has neither model.safetensors nor an index of its shards (pickled weights, *.bin, "
      "are neither fetched nor read)"
    )
  if absent := [path.name for path in paths if not path.is_file()]:
    raise FileNotFoundError(f"{folder} lacks {', '.join(absent)}, which its index names")
  files: dict[str, TensorFile] = {}
  for path in paths:
    file = TensorFile(path)
    files |= dict.fromkeys(file.shapes, file)
  return files


def check_tensors(
  config: DecoderConfig, tensors: list[Tensor], files: Mapping[str, TensorFile], folder: Path
) -> None:
  """Compares the headers with what a decoder needs, before any tensor is read."""
  wanted = {tensor.name: tensor.parameter.stored_shape for tensor in tensors}
  # Old Llama checkpoints store the rotary frequencies, which follow from the config.
  found = {n for n in files if not n.endswith("rotary_emb.inv_freq")}
  if config.tie_embeddings and "lm_head.weight" in found:
    found.discard("lm_head.weight")
    if not _same_tensor(files, "lm_head.weight", "model.embed_tokens.weight"):
      raise ValueError(
        f"{folder}: config.json ties the head to the embedding, but lm_head.weight differs from "
        'it; set "tie_word_embeddings" to false if the head was trained on its own'
      )
  faults = [f"missing {name}" for name in wanted if name not in found]
  faults += [f"unexpected {name}" for name in sorted(found - wanted.keys())]
  for name in (name for name in wanted if name in found):
    if files[name].shapes[name] != wanted[name]:
      faults.append(f"{name} has shape {files[name].shapes[name]}, expected {wanted[name]}")
    elif files[name].dtypes[name] not in DTYPES:
      kinds = ", ".join(DTYPES)
      faults.append(f"{name} is stored as {files[name].dtypes[name]}, expected one of {kinds}")
  if faults:
    listed = "\n  ".join(faults)
    raise ValueError(
      f"{folder} does not hold the model that its config.json describes:\n  {listed}"
    )


def _same_tensor(files: Mapping[str, TensorFile], one: str, other: str) -> bool:
  a, b = files[one], files.get(other)
  if b is None or a.shapes[one] != b.shapes[other] or a.dtypes[one] != b.dtypes[other]:
    return False
  rows = a.shapes[one][0]
  blocks = ((i, min(i + 1024, rows)) for i in range(0, rows, 1024))
  return all(a.rows(one, *block).tobytes() == b.rows(other, *block).tobytes() for block in blocks)


def read_json(path: Path) -> Any:
  """Reads a JSON file.

  Raises:
    ValueError: it is not JSON; the message names the file.
  """
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON: {error}") from None
