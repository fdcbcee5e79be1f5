"""bfloat16 where it is fast, for models that are large enough; float32 elsewhere."""

import types

import pytest

from grpo_jax.benchmarking.shapes import SHAPES, read_shape
from grpo_jax.models import compute_dtype as module
from grpo_jax.models.compute_dtype import compute_dtype, has_fast_bfloat16


def device(platform, capability=None):
  return types.SimpleNamespace(platform=platform, compute_capability=capability)


@pytest.mark.parametrize(
  ("one", "fast"),
  [
    (device("tpu"), True),
    (device("gpu", "9.0"), True),
    (device("gpu", "8.0"), True),
    (device("gpu", "7.5"), False),
    (device("gpu", "gfx942"), True),
    (device("gpu", "10.3"), True),
    (device("METAL"), False),
  ],
)
def test_bfloat16_is_fast_on(one, fast):
  assert has_fast_bfloat16(one) == fast


@pytest.mark.parametrize(
  ("flags", "fast"),
  [("fpu avx512f avx512_bf16", True), ("amx_bf16", True), ("fpu avx2 avx512f", False)],
)
def test_a_processor_says_what_it_has(tmp_path, monkeypatch, flags, fast):
  file = tmp_path / "cpuinfo"
  file.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs : amx_bf16 no\n")
  monkeypatch.setattr(module, "Path", lambda path: file)
  assert module._cpu_has_fast_bfloat16.__wrapped__() == fast


def test_small_models_stay_in_float32(monkeypatch):
  monkeypatch.setattr(module, "has_fast_bfloat16", lambda device: True)
  assert compute_dtype("auto", SHAPES["S"]) == "float32"
  assert compute_dtype("auto", SHAPES["M"]) == read_shape("Q", "auto").dtype == "bfloat16"
  assert compute_dtype("float32", SHAPES["M"]) == "float32"
  assert compute_dtype("bfloat16", SHAPES["S"]) == "bfloat16"
  monkeypatch.setattr(module, "has_fast_bfloat16", lambda device: False)
  assert compute_dtype("auto", SHAPES["M"]) == "float32"
  with pytest.raises(ValueError, match="expected auto, float32 or bfloat16"):
    compute_dtype("half", SHAPES["S"])
