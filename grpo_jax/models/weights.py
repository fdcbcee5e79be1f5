"""Checkpoints in and out, tensor by tensor, by the one table of names and shapes."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from grpo_jax.files import hub
from grpo_jax.files.atomic import write_json
from grpo_jax.models.checkpoint import check_tensors, open_weights, read_json
from grpo_jax.models.compute_dtype import compute_dtype
from grpo_jax.models.config import DecoderConfig, Dtype, token_ids
from grpo_jax.models.parameters import (
  Parameter,
  Params,
  Tensor,
  TreePath,
  checkpoint_tensors,
  parameters,
)
from grpo_jax.models.tensor_file import DTYPES, TensorFile, write_tensors

ShardingFn = Callable[[TreePath, tuple[int, ...]], jax.sharding.Sharding]
# Rows are read and turned in blocks of this many bytes: small against any large tensor, and few
# enough columns at a time for the transpose to stay in cache.
_BLOCK_BYTES = 8 << 20
_SHARD_BYTES = 5_000_000_000
ADAPTER = ("lora_a", "lora_b")  # beside the kernel that they adapt


def load_config(model: str | Path) -> DecoderConfig:
  """Reads a checkpoint's `config.json` and `generation_config.json`.

  Args:
    model: a folder or a hub id, optionally `owner/name@revision`.

  Raises:
    FileNotFoundError: no such checkpoint.
    ValueError: the decoder lacks a feature that the checkpoint uses.
  """
  folder = hub.checkpoint_folder(model, hub.CONFIG_FILES)
  path = folder / "config.json"
  if not path.is_file():
    raise FileNotFoundError(f"{folder} has no config.json: it is no Hugging Face checkpoint")
  try:
    config = DecoderConfig.from_hf(read_json(path))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  generation = folder / "generation_config.json"
  if generation.is_file():
    values = read_json(generation)
    config = dataclasses.replace(
      config,
      eos_token_ids=token_ids(values.get("eos_token_id")) or config.eos_token_ids,
      generation_json=json.dumps(values),
    )
  return config


def load_pretrained(
  path_or_hub_id: str | Path,
  dtype: str | None = "float32",
  sharding: ShardingFn | None = None,
) -> tuple[DecoderConfig, Params]:
  """Loads a checkpoint straight into device arrays, one tensor at a time.

  Host memory beyond the result stays below the largest leaf (one parameter of all layers) plus a
  few megabytes; with `sharding`, every process reads its own slices only.

  Args:
    path_or_hub_id: a folder or a hub id, optionally `owner/name@revision`.
    dtype: of the parameters and of the decoder's compute (`float32`, `bfloat16`, `float16`); `auto`
      takes what is fast here, None what the checkpoint's embedding is stored as.
    sharding: from a parameter's path and shape to where it goes; None means the default device.

  Returns:
    The config and the tree of `parameters`.

  Raises:
    FileNotFoundError: no such checkpoint, or it has no safetensors.
    ValueError: an unsupported feature, or missing, unexpected or misshapen tensors (all listed).
  """
  config = load_config(path_or_hub_id)
  table = parameters(config)
  folder = hub.checkpoint_folder(path_or_hub_id, (*hub.CONFIG_FILES, *hub.WEIGHT_FILES))
  files = open_weights(folder)
  check_tensors(config, checkpoint_tensors(table), files, folder)
  if dtype is None:
    dtype = str(DTYPES[files[table[0].name].dtypes[table[0].name]])
  elif dtype == "auto":
    dtype = compute_dtype(dtype, config)
  config = dataclasses.replace(config, dtype=cast(Dtype, dtype))
  wanted = np.dtype(jnp.dtype(dtype))
  leaves: dict[TreePath, jax.Array] = {}
  for parameter in table:
    shape = parameter.stacked_shape
    read = functools.partial(_read_slice, files, parameter, wanted)
    if sharding is None:
      value = jax.device_put(read((slice(None),) * len(shape)))
    else:
      value = _place(shape, sharding(parameter.path, shape), read)
    # Transfers are asynchronous: without waiting, several host copies would be alive at once.
    leaves[parameter.path] = value.block_until_ready()
  return config, unflatten_dict(leaves)


def save_pretrained(
  config: DecoderConfig,
  params: Mapping[str, Any],
  out_dir: str | Path,
  tokenizer: Any = None,
  dtype: str | None = None,
  max_shard_bytes: int = _SHARD_BYTES,
) -> None:
  """Writes a checkpoint that transformers and vLLM load: config, safetensors, tokenizer.

  On several hosts every process must call it; the first one writes. Adapters are merged one tensor
  at a time: beside the parameters, the device needs room for the largest kernel only.

  Args:
    config: the decoder's config.
    params: the tree of `parameters`, in any sharding; adapters that lie over it (`lora.attach`) are
      merged into their kernels, float32.
    out_dir: the folder, made if missing; its older weights are replaced.
    tokenizer: saved beside the weights when given.
    dtype: of the files; None keeps the parameters' own.
    max_shard_bytes: a file is closed before it grows beyond this.

  Raises:
    ValueError: the tree does not fit the config; the message lists what differs.
  """
  table = parameters(config)
  every = flatten_dict(dict(params))
  leaves = {path: leaf for path, leaf in every.items() if path[-1] not in ADAPTER}
  adapted = {(*path[:-1], "kernel") for path in every if path[-1] in ADAPTER}
  wanted = {parameter.path: parameter.stacked_shape for parameter in table}
  shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
  if wanted != shapes:
    odd = sorted("/".join(p) for p in wanted.keys() ^ shapes.keys()) or [
      f"{'/'.join(p)} {shapes[p]}, expected {wanted[p]}" for p in wanted if shapes[p] != wanted[p]
    ]
    raise ValueError(f"the parameters do not fit the config: {', '.join(odd)}")
  tensors = {tensor.name: tensor for tensor in checkpoint_tensors(table)}
  own = lambda path: "float32" if path in adapted else leaves[path].dtype
  stored = {
    name: (
      tensor.parameter.stored_shape,
      np.dtype(jnp.dtype(dtype or own(tensor.parameter.path))),
    )
    for name, tensor in tensors.items()
  }
  if unknown := {str(d) for _, d in stored.values()} - {str(d) for d in DTYPES.values()}:
    raise ValueError(f"cannot store {', '.join(unknown)} parameters; give a dtype")
  shards = _split(stored, max_shard_bytes)
  names = [
    "model.safetensors"
    if len(shards) == 1
    else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    for number in range(1, len(shards) + 1)
  ]
  folder, writer = Path(out_dir), jax.process_index() == 0
  if writer:
    folder.mkdir(parents=True, exist_ok=True)

  def fetch(name: str) -> np.ndarray:
    tensor = tensors[name]
    path, layer = tensor.parameter.path, tensor.layer
    pick = lambda leaf: leaf if layer is None else leaf[layer]
    leaf = pick(leaves[path])
    if path in adapted:
      leaf = merged_kernel(leaf, *(pick(every[*path[:-1], half]) for half in ADAPTER))
    return host_array(leaf, tensor._replace(layer=None), stored[name][1])

  for name, shard in zip(names, shards, strict=True):
    specs = {tensor: stored[tensor] for tensor in shard}
    values = ((tensor, fetch(tensor)) for tensor in shard)
    if writer:
      write_tensors(folder / name, specs, values)
    else:
      # Gathering is collective, so the other hosts must walk through the tensors as well.
      for _ in values:
        continue
  if not writer:
    return
  if len(shards) > 1:
    where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(_nbytes(stored[tensor]) for tensor in stored)
    names.append("model.safetensors.index.json")
    write_json(folder / names[-1], {"metadata": {"total_size": total}, "weight_map": where})
  _remove_other_weights(folder, names)
  write_configs(config, str(stored["model.norm.weight"][1]), folder)
  if tokenizer is not None:
    _write_tokenizer(tokenizer, folder)


def _read_slice(
  files: Mapping[str, TensorFile],
  parameter: Parameter,
  dtype: np.dtype,
  index: tuple[slice, ...],
) -> np.ndarray:
  """Reads `parameter[index]` in our shape and orientation, layer by layer."""
  ranges = [slice(*part.indices(n)) for part, n in zip(index, parameter.stacked_shape, strict=True)]
  out = _staged([part.stop - part.start for part in ranges], dtype)
  if not parameter.layers:
    ranges, out = [slice(0, 1), *ranges], out[None]
  names, within = parameter.names[ranges[0]], tuple(ranges[1:])
  for name, layer in zip(names, out, strict=True):
    _read_into(layer, files[name], name, within, parameter.turned)
  return out if parameter.layers else out[0]


def _staged(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """Memory for a leaf on its way to a device, which goes back to the system when it is freed.

  A heap would keep holes of every leaf's size. It does not begin at a multiple of 64 bytes, so JAX
  on CPU copies it: a buffer that JAX only borrows cannot be donated to the first update.
  """
  count, skipped = math.prod(shape), 16
  memory = mmap.mmap(-1, count * dtype.itemsize + skipped)
  return np.frombuffer(memory, dtype, count, skipped).reshape(shape)


def _read_into(
  out: np.ndarray, file: TensorFile, name: str, index: tuple[slice, ...], turned: bool
) -> None:
  """Fills `out` with a part of a tensor, block by block."""
  (rows, *rest), target = (index[::-1], out.T) if turned else (index, out)
  width = int(np.prod(file.shapes[name][1:], dtype=np.int64))
  step = max(1, _BLOCK_BYTES // (4 * max(1, width)))
  for start in range(rows.start, rows.stop, step):
    stop = min(start + step, rows.stop)
    block = file.rows(name, start, stop)
    target[start - rows.start : stop - rows.start] = block[(slice(None), *rest)]


def _place(
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding,
  read: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
  seen: dict[str, np.ndarray] = {}

  def read_once(index: tuple[slice, ...] | None) -> np.ndarray:
    # Devices that hold the same slice share one host copy.
    index = index or (slice(None),) * len(shape)
    key = str(index)
    if key not in seen:
      seen[key] = read(index)
    return seen[key]

  return jax.make_array_from_callback(shape, sharding, read_once)


def merged_kernel(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  """W + A B in float32; `attach` has scaled B."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  return kernel.astype(jnp.float32) + change


def host_array(leaf: Any, tensor: Tensor, dtype: np.dtype) -> np.ndarray:
  """A tensor of a leaf on the host, in the checkpoint's orientation and dtype."""
  if tensor.layer is not None:
    leaf = leaf[tensor.layer]
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    from jax.experimental import multihost_utils

    leaf = multihost_utils.process_allgather(leaf, tiled=True)
  value = np.asarray(leaf)
  return (value.T if tensor.parameter.turned else value).astype(dtype, copy=False)


def _split(stored: Mapping[str, tuple[tuple[int, ...], np.dtype]], limit: int) -> list[list[str]]:
  shards: list[list[str]] = [[]]
  size = 0
  for name, spec in stored.items():
    if shards[-1] and size + _nbytes(spec) > limit:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += _nbytes(spec)
  return shards


def _nbytes(spec: tuple[tuple[int, ...], np.dtype]) -> int:
  return int(np.prod(spec[0], dtype=np.int64)) * spec[1].itemsize


def _remove_other_weights(folder: Path, names: list[str]) -> None:
  """Weights of an earlier export; a leftover single file would win over new shards."""
  for pattern in hub.WEIGHT_FILES:
    for path in folder.glob(pattern):
      if path.name not in names:
        path.unlink()


def write_configs(config: DecoderConfig, dtype: str, folder: Path) -> None:
  """Writes `config.json` and `generation_config.json`.

  Args:
    config: the decoder's config.
    dtype: of the weights beside them.
    folder: of the checkpoint.
  """
  hf = config.to_hf()
  write_json(folder / "config.json", {**hf, "torch_dtype": dtype})
  generation = json.loads(config.generation_json) if config.generation_json else {}
  for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
    # What the checkpoint's own file said wins, but stop tokens may have been changed since.
    if hf[key] is not None and (key == "eos_token_id" or key not in generation):
      generation[key] = hf[key]
  write_json(folder / "generation_config.json", generation)


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
  """Saves a tokenizer in the words that transformers 4, and vLLM with it, understand too."""
  tokenizer.save_pretrained(folder)
  path = folder / "tokenizer_config.json"
  config = read_json(path)
  # transformers 5 writes how and whence it loaded the tokenizer, and new names for old things.
  for key in ("backend", "is_local", "local_files_only"):
    config.pop(key, None)
  if config.get("tokenizer_class") == "TokenizersBackend":
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
  if isinstance(config.get("extra_special_tokens"), list):
    config["additional_special_tokens"] = config.pop("extra_special_tokens")
  write_json(path, config)
