"""Memory, FLOP/s and bandwidths of accelerators: one table, with sources.

Numbers are the vendors' peaks, so that times computed from them are bounds, not forecasts.
"""

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


def _chip(name, platform, memory, tflops, hbm_gb, link_gb, source, **more) -> Chip:
  size = memory * (1 << 30 if platform == "tpu" else 10**9)
  return Chip(name, platform, size, tflops * 1e12, hbm_gb * 1e9, link_gb * 1e9 / 2, source, **more)


# HBM (GiB for TPUs, decimal GB for GPUs), dense bf16 TFLOP/s, HBM GB/s, interconnect GB/s of a chip
# in both directions (TPU: ICI; GPU: NVLink, or PCIe where there is none).
CHIPS: dict[str, Chip] = {
  chip.name: chip
  for chip in (
    _chip("v4", "tpu", 32, 275, 1228, 300, TPU + "v4", variant="megacore"),
    _chip("v5e", "tpu", 16, 197, 819, 400, TPU + "v5e"),
    _chip("v5p", "tpu", 95, 459, 2765, 1200, TPU + "v5p"),
    _chip("v6e", "tpu", 32, 918, 1638, 800, TPU + "v6e"),
    _chip("tpu7x", "tpu", 192, 2307, 7380, 1200, TPU + "tpu7x", devices=2),
    _chip("a100-40g", "gpu", 40, 312, 1555, 600, NVIDIA + "a100/"),
    _chip("a100-80g", "gpu", 80, 312, 2039, 600, NVIDIA + "a100/"),
    _chip("l4", "gpu", 24, 121, 300, 64, NVIDIA + "l4/"),
    _chip("h100", "gpu", 80, 989, 3350, 900, NVIDIA + "h100/"),
    _chip("h200", "gpu", 141, 989, 4800, 900, NVIDIA + "h200/"),
    _chip("b200", "gpu", 180, 2250, 7700, 1800, NVIDIA + "dgx-b200/"),
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
