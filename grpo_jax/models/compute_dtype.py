"""Which dtype a model computes in, where nobody says."""

import functools
from pathlib import Path
from typing import Literal, cast, get_args

import jax

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.parameters import parameter_count

ComputeDtype = Literal["float32", "bfloat16"]
# A smaller model is not held up by its products, and its log-probs are worth having exactly.
SMALL = 100_000_000
CPU_FLAGS = {"amx_bf16", "avx512_bf16"}  # processors that multiply bfloat16 at twice the rate


def compute_dtype(asked: str, config: DecoderConfig) -> ComputeDtype:
  """The dtype to compute in: what was asked for, or for `auto` what is fast on this device.

  bfloat16 for models of at least 100 million parameters on TPUs, on GPUs of compute capability 8.0
  and up, and on CPUs with AMX or AVX512-BF16; else float32.
  """
  if asked in get_args(ComputeDtype):
    return cast(ComputeDtype, asked)
  if asked != "auto":
    raise ValueError(f"dtype is {asked!r}; expected auto, float32 or bfloat16")
  fast = parameter_count(config) >= SMALL and has_fast_bfloat16(jax.devices()[0])
  return "bfloat16" if fast else "float32"


def has_fast_bfloat16(device: jax.Device) -> bool:
  """Whether products of bfloat16 are faster there than those of float32."""
  if device.platform == "gpu":
    # AMD's say gfx..; all that jax runs on have them.
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return int(major) >= 8 if major.isdigit() else True
  return device.platform == "tpu" or (device.platform == "cpu" and _cpu_has_fast_bfloat16())


@functools.cache
def _cpu_has_fast_bfloat16() -> bool:
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
  except OSError:  # no Linux
    return False
  return any(CPU_FLAGS & set(line.split()) for line in lines if line.startswith("flags"))
