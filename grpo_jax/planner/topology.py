"""The hardware that a plan is for: a TPU slice, or a number of GPUs."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh, AxisType, Mesh

from grpo_jax.planner.chips import Chip, chip_named
from grpo_jax.sharding import AXES, make_mesh, mesh_sizes

_MISSING = (
  "compiling for a TPU needs its compiler, libtpu, which runs on any x86-64 Linux machine: "
  "pip install 'grpo_jax[plan]'"
)


@dataclass(frozen=True)
class Topology:
  """A machine.

  Attributes:
    text: as given.
    chip: of which kind its chips are.
    chips: how many.
  """

  text: str
  chip: Chip
  chips: int

  @property
  def num_devices(self) -> int:
    """JAX devices in it."""
    return self.chips * self.chip.devices


def parse_topology(text: str) -> Topology:
  """Reads `v5e:4x4`, `v5p:2x2x4` or `h100:8`.

  Raises:
    ValueError: not of that form, or an unknown chip.
  """
  name, _, shape = text.partition(":")
  chip = chip_named(name)
  form = r"[1-9]\d*(x[1-9]\d*)*"
  if not re.fullmatch(form, shape):
    raise ValueError(f"--topology={text}: expected CHIP:SHAPE, such as v5e:4x4 or h100:8")
  return Topology(text, chip, math.prod(int(side) for side in shape.split("x")))


def tpu_devices(topology: Topology) -> Sequence[Any]:
  """Device descriptions of a TPU slice, for ahead-of-time compilation without the hardware.

  Raises:
    ValueError: libtpu is not installed, or does not know the slice.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(_MISSING)
  # Otherwise libtpu asks a metadata server that only machines in Google's cloud can reach.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{topology.chip.name}-{topology.chips}")
  from jax.experimental import topologies

  options = {"chip_config_name": topology.chip.variant} if topology.chip.variant else {}
  try:
    return topologies.get_topology_desc(topology.text, "tpu", **options).devices
  except Exception as error:
    first = str(error).strip().splitlines()[0]
    raise ValueError(f"--topology={topology.text}: libtpu does not open it: {first}") from error


def plan_mesh(text: str, topology: Topology) -> Mesh | AbstractMesh:
  """The mesh that `--mesh` describes: of described devices for a TPU, of none for GPUs.

  Raises:
    ValueError: as `make_mesh`; also a mesh that leaves devices of the slice unused.
  """
  sizes = mesh_sizes(text, topology.num_devices)
  if math.prod(sizes) != topology.num_devices:
    raise ValueError(
      f"--mesh={text} uses {math.prod(sizes)} of the {topology.num_devices} devices of "
      f"--topology={topology.text}; use all of them (one axis may be -1)"
    )
  if topology.chip.platform == "tpu":
    return make_mesh(text, tpu_devices(topology))
  return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
