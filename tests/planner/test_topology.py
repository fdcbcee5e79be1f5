"""Machines are read from flags; what is known of their chips is consistent."""

from __future__ import annotations

import pytest

from grpo_jax.planner import parse_topology, plan_mesh
from grpo_jax.planner.chips import CHIPS


def test_a_machine_is_read():
  v5p = parse_topology("v5p:2x2x4")
  assert (v5p.chip.name, v5p.chips, v5p.num_devices) == ("v5p", 16, 16)
  assert parse_topology("tpu7x:2x2x1").num_devices == 8  # two devices a chip
  assert parse_topology("h100:8").chips == 8


@pytest.mark.parametrize("text", ["v5e", "v5e:", "v5e:4x", "v5e:0x4", "v5e:4*4"])
def test_a_shape_that_cannot_be_read_is_refused(text):
  with pytest.raises(ValueError, match="such as v5e:4x4"):
    parse_topology(text)


def test_an_unknown_chip_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match=r"v9.*v5e.*h100"):
    parse_topology("v9:4x4")


def test_every_chip_has_a_source_and_sensible_numbers():
  for chip in CHIPS.values():
    assert chip.source.startswith("https://")
    # Arithmetic outpaces memory, and memory outpaces links, on everything ever built.
    assert chip.flops > 50 * chip.hbm_bandwidth and chip.hbm_bandwidth > 2 * chip.link_bandwidth
  v5e = CHIPS["v5e"]
  assert (v5e.hbm_bytes, v5e.flops, v5e.link_bandwidth) == (16 * 2**30, 197e12, 200e9)


def test_a_mesh_of_gpus_needs_no_devices():
  mesh = plan_mesh("fsdp:-1,tensor:2", parse_topology("h100:8"))
  assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
  ("mesh", "message"),
  [("fsdp:4", "uses 4 of the 8 devices"), ("fsdp:3,data:-1", "8 devices do not divide by 3")],
)
def test_a_mesh_that_does_not_cover_the_machine_is_refused(mesh, message):
  with pytest.raises(ValueError, match=message):
    plan_mesh(mesh, parse_topology("h100:8"))
