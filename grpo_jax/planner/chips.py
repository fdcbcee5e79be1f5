"""What accelerators have: memory, arithmetic, and how fast they talk; one table with its sources.

Numbers are the vendors' peaks, so that times computed from them are bounds, not forecasts.
"""

from __future__ import annotations

from dataclasses import dataclass

TPU = "https://docs.cloud.google.com/tpu/docs/"
NVIDIA = "https://www.nvidia.com/en-us/data-center/"


@dataclass(frozen=True)
class Chip:
  """One kind of chip.

  Attributes:
    name: as in `--topology=NAME:SHAPE`.
    platform: `tpu`, which can be compiled for without a device, or `gpu`, which cannot.
    hbm_bytes: memory of a chip.
    flops: peak dense bfloat16 operations a second.
    hbm_bandwidth: bytes a second between a chip and its memory.
    link_bandwidth: bytes a second that a chip can send to others in its slice or box, one way (half
      of the bidirectional figure that vendors give).
    source: where the numbers stand.
    devices: how many JAX devices a chip is; memory and arithmetic are shared out evenly.
    variant: libtpu's name of the chip's mode, where it needs to be told.
  """

  name: str
  platform: str
  hbm_bytes: int
  flops: float
  hbm_bandwidth: float
  link_bandwidth: float
  source: str
  devices: int = 1
  variant: str = ""

  def per_device(self, quantity: float) -> float:
    """What one JAX device has of a chip's quantity."""
    return quantity / self.devices


def _tpu(name, gib, tflops, hbm_gb, ici_gb, page="", **more) -> Chip:
  return Chip(name, "tpu", gib << 30, tflops * 1e12, hbm_gb * 1e9, ici_gb * 1e9 / 2,
              TPU + (page or name), **more)  # fmt: skip


def _gpu(name, gb, tflops, hbm_gb, link_gb, page) -> Chip:
  return Chip(
    name, "gpu", int(gb * 1e9), tflops * 1e12, hbm_gb * 1e9, link_gb * 1e9 / 2, NVIDIA + page
  )


# HBM (GiB for TPUs, decimal GB for GPUs), dense bf16 TFLOP/s, HBM GB/s, interconnect GB/s of a chip
# in both directions (TPU: ICI; GPU: NVLink, or PCIe where there is none).
CHIPS: dict[str, Chip] = {
  chip.name: chip
  for chip in (
    _tpu("v4", 32, 275, 1228, 300, variant="megacore"),
    _tpu("v5e", 16, 197, 819, 400),
    _tpu("v5p", 95, 459, 2765, 1200),
    _tpu("v6e", 32, 918, 1638, 800),
    _tpu("tpu7x", 192, 2307, 7380, 1200, devices=2),
    _gpu("a100-40g", 40, 312, 1555, 600, "a100/"),
    _gpu("a100-80g", 80, 312, 2039, 600, "a100/"),
    _gpu("l4", 24, 121, 300, 64, "l4/"),
    _gpu("h100", 80, 989, 3350, 900, "h100/"),
    _gpu("h200", 141, 989, 4800, 900, "h200/"),
    _gpu("b200", 180, 2250, 7700, 1800, "dgx-b200/"),
  )
}


def chip_named(name: str) -> Chip:
  """Looks a chip up.

  Raises:
    ValueError: unknown; names the known ones.
  """
  if name not in CHIPS:
    raise ValueError(f"--topology: unknown chip {name!r}; expected one of {', '.join(CHIPS)}")
  return CHIPS[name]
