"""Keeps the prompt axis split over the devices, where the compiler would choose for itself.

With FSDP a matrix and the prompts are split over the same devices. Nothing but this tells the
compiler to gather the matrix: left alone (jax 0.10, TPU and CPU) it gathered the activations
instead, so that every device held those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from grpo_jax.models.kv_cache import LayerKV
from grpo_jax.types import Array

BATCH_AXES = ("data", "fsdp")  # the axes of the mesh that split prompts


def prompt_parts() -> int:
  """Into how many parts the mesh of `jax.sharding.use_abstract_mesh` splits prompts; 1 without."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def _divides(prompts: int) -> bool:
  """Whether the mesh splits prompts, into parts that divide so many."""
  parts = prompt_parts()
  return parts > 1 and prompts % parts == 0


def split_prompts(tree: Any, axis: int = 0) -> Any:
  """Constrains every array's prompt axis to be split over `data` and `fsdp`; other axes are free.

  It does nothing outside a mesh, on one device, and where the devices do not divide the axis.

  Args:
    tree: arrays [.., P, ..].
    axis: where P stands.
  """

  def split(x):
    if not _divides(x.shape[axis]):
      return x
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = BATCH_AXES
    return lax.with_sharding_constraint(x, PartitionSpec(*spec))

  return jax.tree.map(split, tree)


def looked_up(x: jax.Array) -> jax.Array:
  """Places rows [P, L, D] of a table split by width: from each device's width to its own prompts.

  The stop in between is for the backward pass. Without it the partitioner of jax 0.12 goes from one
  placement to the other by holding the whole batch's gradient on every device.

  Args:
    x: looked up in an embedding whose width is split over `fsdp`.
  """
  if _divides(x.shape[0]):
    x = lax.with_sharding_constraint(x, PartitionSpec("data", None, "fsdp"))
  return split_prompts(x)


def gathered_once(
  function: Callable[..., Any], weight: jax.Array, *arrays: jax.Array | np.ndarray
) -> Any:
  """Calls `function(weight, *arrays)` on each device's own prompts, the weight gathered before.

  For functions that loop over the weight. In a loop's body the compiler would gather it in every
  iteration and, in the backward pass, also sum its whole gradient over the devices in each; here it
  is gathered once and the sum is scattered once. Does nothing special where `split_prompts` does
  nothing.

  Args:
    function: without collectives of its own; its results have prompts first.
    weight: [V, D], of which D is split over `fsdp`.
    arrays: [P, ..].
  """
  if not all(_divides(x.shape[0]) for x in arrays):
    return function(weight, *arrays)

  def local(weight, *arrays):
    # Told here that prompts differ along `data`, or gradients would be summed over it at each use.
    weight = lax.pcast(weight, "data", to="varying")
    # Along the first axis: its gradient then lies as the sum over the devices wants it. A copy in
    # between would let XLA on CPU begin the layers' own sums first, on one of several hosts.
    return function(lax.all_gather(weight.T, "fsdp", axis=0, tiled=True).T, *arrays)

  own = PartitionSpec(BATCH_AXES)
  return jax.shard_map(
    local,
    in_specs=(PartitionSpec(None, "fsdp"), *(own for _ in arrays)),
    out_specs=own,
    axis_names=set(BATCH_AXES),
  )(weight, *arrays)


def heads_divide(q: jax.Array, kv: LayerKV) -> bool:
  """Whether the mesh splits prompts and heads of q [P, S, Q, H] evenly, or there is none."""
  mesh = jax.sharding.get_abstract_mesh()
  tensor = 1 if mesh.empty else mesh.shape["tensor"]
  return not (q.shape[0] % prompt_parts() or kv.k.shape[1] % tensor)


def on_own_heads(
  kernel: Callable[..., jax.Array], q: jax.Array, kv: LayerKV, mask: Array
) -> jax.Array:
  """Calls an attention kernel on each device's own prompts and heads, which `heads_divide`.

  The compiler cannot split a kernel by itself.

  Args:
    kernel: (q, keys, values, mask) -> [P, S, Q * H].
    q: [P, S, Q, H].
    kv: keys [P, K, H, S] and values [P, K, S, H].
    mask: [P, S] bool.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel(q, *kv, mask)
  heads_second = PartitionSpec(BATCH_AXES, "tensor")
  heads_third = PartitionSpec(BATCH_AXES, None, "tensor")
  return jax.shard_map(
    kernel,
    in_specs=(heads_third, heads_second, heads_second, PartitionSpec(BATCH_AXES)),
    out_specs=heads_third,
    check_vma=False,
  )(q, *kv, mask)
