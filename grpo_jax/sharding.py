"""Where arrays live: a mesh of named axes, and each parameter's place on it.

`jax.jit` with sharded arguments is the successor of `pjit`: parameters, optimizer state and batches
are placed by the functions here and the compiler follows. Axes:

* `data`: prompts are split, parameters are copied;
* `fsdp`: prompts are split, and so is every matrix (gathered where it is used);
* `tensor`: heads, mlp width and vocabulary are split.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from grpo_jax.models import DecoderConfig, unstacked
from grpo_jax.models.parameters import declaration, parameters
from grpo_jax.models.placement import BATCH_AXES

AXES = ("data", "fsdp", "tensor")
AnyMesh = Mesh | AbstractMesh  # the planner has no devices

BATCH_SPEC = PartitionSpec(BATCH_AXES)  # the prompt axis, which comes first everywhere


def parse_mesh(text: str) -> dict[str, int]:
  """Reads `data:1,fsdp:4,tensor:2`; axes left out are 1 and one axis may be -1, the rest.

  Raises:
    ValueError: an unknown axis, or a size that is not a whole number.
  """
  sizes = dict.fromkeys(AXES, 1)
  for part in filter(None, text.replace(" ", "").split(",")):
    name, _, size = part.partition(":")
    if name not in AXES or not re.fullmatch(r"-1|[1-9]\d*", size):
      raise ValueError(
        f"--mesh={text}: {part!r} is not AXIS:SIZE with AXIS one of {', '.join(AXES)} and SIZE "
        "positive or -1"
      )
    sizes[name] = int(size)
  if list(sizes.values()).count(-1) > 1:
    raise ValueError(f"--mesh={text}: only one axis may be -1")
  return sizes


def make_mesh(text: str = "", devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Builds the mesh that `--mesh` describes.

  Args:
    text: see `parse_mesh`; empty means one device.
    devices: what to build it from; all of JAX's devices when None. A mesh without -1 may use fewer.

  Raises:
    ValueError: the devices do not suffice or do not divide.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = mesh_sizes(text, len(devices))
  grid = np.asarray(devices[: math.prod(sizes)]).reshape(sizes)
  # Auto, not Explicit (the default of jax.make_mesh): reshapes regroup sharded axes.
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(text: str, devices: int) -> tuple[int, ...]:
  """The sizes of `AXES` that `--mesh` gives for a number of devices.

  Raises:
    ValueError: the devices do not suffice or do not divide.
  """
  sizes = parse_mesh(text).values()
  fixed = math.prod(size for size in sizes if size > 0)
  if -1 in sizes and devices % fixed:
    raise ValueError(f"--mesh={text}: {devices} devices do not divide by {fixed}")
  if fixed > devices:
    raise ValueError(f"--mesh={text} needs {fixed} devices and there are {devices}")
  return tuple(devices // fixed if size == -1 else size for size in sizes)


def parameter_spec(
  config: DecoderConfig, mesh: AnyMesh, path: Sequence[str], shape: Sequence[int]
) -> PartitionSpec:
  """The PartitionSpec of one parameter.

  Key/value heads that the tensor axis does not divide are copied along it, not split.

  Raises:
    ValueError: no such parameter, or an axis of the mesh does not divide the shape; names the axis
      and the flag.
  """
  name = "/".join(path)
  found = declaration(config, tuple(path), shape)
  if found is None:
    raise ValueError(f"the decoder has no {name} of shape {tuple(shape)}")
  spec, tensor = tuple(found.spec), mesh.shape["tensor"]
  if found.heads == "key/value" and config.num_kv_heads % tensor:
    spec = tuple(None if axis == "tensor" else axis for axis in spec)
  if found.heads == "query" and config.num_heads % tensor:
    raise ValueError(f"--mesh: tensor:{tensor} does not divide the {config.num_heads} query heads")
  if found.layers:
    spec = (None, *spec)  # a layer is never cut from the others
  for axis, size in zip(spec, shape, strict=False):
    if axis is not None and size % mesh.shape[axis]:
      raise ValueError(
        f"--mesh: {axis}:{mesh.shape[axis]} does not divide {size}, a side of {name} {tuple(shape)}"
      )
  return PartitionSpec(*spec)


def parameter_sharding(
  config: DecoderConfig, mesh: AnyMesh
) -> Callable[[tuple[str, ...], tuple[int, ...]], NamedSharding]:
  """A function from a parameter's path and shape to its sharding, as `load_pretrained` takes it."""
  return lambda path, shape: NamedSharding(mesh, parameter_spec(config, mesh, path, shape))


def state_shardings(config: DecoderConfig, mesh: AnyMesh, tree: Any) -> Any:
  """Shardings for any tree that holds parameters or things shaped like them.

  Optimizer moments follow their parameter: a leaf is recognized by the end of its path
  (`.../layers/q/kernel`) and its shape. Everything else (counters, keys, Adafactor's row and column
  means) is copied to every device.

  Args:
    config: of the decoder.
    mesh: from `make_mesh`.
    tree: parameters, an optimizer state or a whole `TrainState`; arrays or their shapes.
  """

  def place(path, leaf):
    keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in path]
    start = next((i for i, key in enumerate(keys) if key in roots), None)
    path = tuple(keys[start:])
    if start is None or declaration(config, path, leaf.shape) is None:
      return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, parameter_spec(config, mesh, path, leaf.shape))

  roots = {parameter.path[0] for parameter in parameters(config)}
  return jax.tree_util.tree_map_with_path(place, tree)


def split_parameters(config: DecoderConfig, tree: Any) -> Any:
  """Constrains gradients to be split as their parameters are; does nothing outside a mesh.

  Without it, gradients that are summed over micro-batches may be held whole on every device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return tree
  return jax.lax.with_sharding_constraint(tree, state_shardings(config, mesh, tree))


def decoding_parameters(config: DecoderConfig, params: Any, *, gather: bool) -> Any:
  """Parameters for many decoding steps: `unstacked`, and with `gather` whole along `fsdp`.

  A decoding loop reads every weight for each token; left split, they are sent for each, too.
  """
  apart = unstacked(config, params)
  mesh = jax.sharding.get_abstract_mesh()
  if not gather or mesh.empty or mesh.shape["fsdp"] == 1:
    return apart

  def whole(place, first=0):
    return PartitionSpec(*(None if axis == "fsdp" else axis for axis in place.spec[first:]))

  placed = state_shardings(config, mesh, params)
  layer = jax.tree.map(lambda place: whole(place, 1), placed.pop("layers"))
  places = jax.tree.map(whole, placed) | {"layers": (layer,) * config.num_layers}
  return jax.lax.with_sharding_constraint(apart, places)


def on_mesh(mesh: AnyMesh | None) -> contextlib.AbstractContextManager[Any]:
  """What a traced function enters so that the constraints in it see the mesh; None is no mesh."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh else contextlib.nullcontext()


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
  """Arrays whose first axis is prompts: split over `data` and `fsdp`."""
  return NamedSharding(mesh, BATCH_SPEC)


def batch_parts(mesh: AnyMesh) -> int:
  """Into how many parts the prompt axis is split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]
