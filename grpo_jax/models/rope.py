"""Rotary position frequencies and the ways checkpoints stretch them; numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
  from grpo_jax.models.config import DecoderConfig

RopeKind = Literal["linear", "llama3", "yarn"]

# The fields that each kind of scaling has in a config.json.
_FIELDS: dict[str, tuple[str, ...]] = {
  "linear": ("factor",),
  "llama3": (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
  ),
  "yarn": (
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
  ),
}


@dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched for contexts longer than the pretrained one.

  Attributes:
    kind: `linear`, `llama3` or `yarn`.
    factor: by how much the context grows.
    original_max_position_embeddings: the pretrained context in tokens (`llama3`, `yarn`).
    low_freq_factor: `llama3`: waves longer than context / this are fully slowed.
    high_freq_factor: `llama3`: waves shorter than context / this are left alone.
    beta_fast: `yarn`: pairs that turn at least this often in the pretrained context are kept.
    beta_slow: `yarn`: pairs that turn at most this often are fully slowed.
    attention_factor: `yarn`: multiplies cos and sin; None derives it from `factor`.
    mscale: `yarn`: DeepSeek's numerator for the derived attention factor.
    mscale_all_dim: `yarn`: and its denominator.
    truncate: `yarn`: round the borders of the blend to whole pairs.
  """

  kind: RopeKind
  factor: float
  original_max_position_embeddings: int = 0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None
  truncate: bool = True

  def __post_init__(self) -> None:
    if self.kind not in get_args(RopeKind):
      kinds = ", ".join(get_args(RopeKind))
      raise ValueError(f"rope type {self.kind!r} is not supported; expected one of {kinds}")
    if self.factor < 1:
      raise ValueError(f"the rope scaling factor is {self.factor}; expected 1 or more")
    if self.kind != "linear" and self.original_max_position_embeddings < 1:
      raise ValueError(f"{self.kind} rope scaling needs original_max_position_embeddings")
    if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
      raise ValueError("llama3 rope scaling needs high_freq_factor above low_freq_factor")

  def to_hf(self) -> dict[str, Any]:
    """Returns the mapping for a config.json; `type` is what vLLM and transformers 4 look for."""
    fields = _given({name: getattr(self, name) for name in _FIELDS[self.kind]})
    return {"rope_type": self.kind, "type": self.kind, **fields}


def read_rope(hf: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
  """Reads rotary base and scaling from a config.json, in the form of transformers 4 or 5.

  Raises:
    ValueError: the scaling is of a kind that is not supported; the message names it.
  """
  rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
  if any(isinstance(value, Mapping) for value in rope.values()):
    raise ValueError("the checkpoint uses rope parameters by layer type, which is not supported")
  # Older configs keep these two beside the scaling and not inside it.
  outer = {name: hf[name] for name in ("rope_theta", "partial_rotary_factor") if name in hf}
  rope = _given(outer) | _given(rope)
  theta = float(rope.pop("rope_theta", 10000.0))
  if rope.pop("partial_rotary_factor", 1.0) != 1.0:
    raise ValueError("the checkpoint uses partial_rotary_factor, which is not supported")
  kind = rope.pop("type", "default")
  kind = rope.pop("rope_type", kind)
  if kind == "default":
    return theta, None
  if kind not in _FIELDS:
    raise ValueError(f"rope type {kind!r} is not supported; expected one of {', '.join(_FIELDS)}")
  # transformers prefers the outer length, and falls back to the whole context.
  length = rope.get("original_max_position_embeddings", hf.get("max_position_embeddings", 0))
  rope["original_max_position_embeddings"] = hf.get("original_max_position_embeddings", length)
  if kind == "linear":
    del rope["original_max_position_embeddings"]
  if unknown := sorted(rope.keys() - _FIELDS[kind]):
    raise ValueError(f"{kind} rope scaling with {', '.join(unknown)} is not supported")
  needed = ("factor", "low_freq_factor", "high_freq_factor") if kind == "llama3" else ("factor",)
  if missing := [name for name in needed if name not in rope]:
    raise ValueError(f"{kind} rope scaling needs {', '.join(missing)}")
  return theta, RopeScaling(kind=kind, **rope)


def full_rope(hf: Mapping[str, Any]) -> dict[str, Any]:
  """Of a Gemma 3 config.json, what `read_rope` takes for the layers without a window."""
  by_type = hf.get("rope_parameters") or {}
  return {"rope_theta": 1e6, **hf, "rope_parameters": by_type.get("full_attention")}


def read_local_theta(hf: Mapping[str, Any]) -> float:
  """The base of the rotary frequencies in Gemma 3's layers with a window, which are not scaled."""
  local = (hf.get("rope_parameters") or {}).get("sliding_attention") or {}
  if local.get("rope_type", "default") != "default":
    raise ValueError("the checkpoint scales the rotary frequencies of sliding layers")
  return float(local.get("rope_theta", hf.get("rope_local_base_freq", 10000.0)))


def rope_frequencies(config: DecoderConfig, *, local: bool = False) -> tuple[np.ndarray, float]:
  """Inverse frequencies theta^(-2i/H) of RoPE (arXiv:2104.09864), after the config's scaling.

  Args:
    config: its `head_dim`, `rope_theta` and `rope_scaling` are read.
    local: those of layers with a window, of `local_rope_theta`.

  Returns:
    The frequencies, float32 [head_dim // 2], in radians a token, and the factor that cos and sin
    are multiplied by (1.0 unless the scaling is yarn).
  """
  width = np.float32(config.head_dim)
  steps = np.arange(0, config.head_dim, 2, dtype=np.float32) / width
  # float32 throughout, as the reference implementation does: frequencies rounded otherwise would
  # turn into different angles at long positions.
  theta = config.local_rope_theta if local else config.rope_theta
  inverse = (1.0 / np.float32(theta) ** steps).astype(np.float32)
  scaling = None if local else config.rope_scaling
  if scaling is None:
    return inverse, 1.0
  if scaling.kind == "linear":
    return inverse / np.float32(scaling.factor), 1.0
  if scaling.kind == "llama3":
    return _llama3(inverse, scaling), 1.0
  return _yarn(inverse, scaling, config.head_dim, config.rope_theta), _yarn_factor(scaling)


def _llama3(inverse: np.ndarray, scaling: RopeScaling) -> np.ndarray:
  """Llama 3.1: long waves are slowed by `factor`, short ones kept, those between blended."""
  length = scaling.original_max_position_embeddings
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  waves = np.float32(2 * math.pi) / inverse
  blend = np.clip((np.float32(length) / waves - low) / (high - low), 0, 1).astype(np.float32)
  slowed = inverse / np.float32(scaling.factor)
  return ((1 - blend) * slowed + blend * inverse).astype(np.float32)


def _yarn(inverse: np.ndarray, scaling: RopeScaling, width: int, theta: float) -> np.ndarray:
  """YaRN, "NTK-by-parts" (arXiv:2309.00071, section 3.2)."""

  def pair_that_turns(rotations: float) -> float:
    length = scaling.original_max_position_embeddings
    return width * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

  first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
  if scaling.truncate:
    first, last = math.floor(first), math.ceil(last)
  # The bound is width - 1 and not width // 2 - 1: what released checkpoints were used with.
  first, last = max(first, 0), min(last, width - 1)
  span = last - first if last != first else 0.001
  ramp = np.clip((np.arange(width // 2, dtype=np.float32) - first) / np.float32(span), 0, 1)
  ramp = ramp.astype(np.float32)
  return inverse / np.float32(scaling.factor) * ramp + inverse * (1 - ramp)


def _yarn_factor(scaling: RopeScaling) -> float:
  """The attention temperature of YaRN (section 3.4), applied to cos and sin."""

  def temperature(scale: float) -> float:
    return 1.0 if scaling.factor <= 1 else 0.1 * scale * math.log(scaling.factor) + 1.0

  if scaling.attention_factor is not None:
    return float(scaling.attention_factor)
  if scaling.mscale and scaling.mscale_all_dim:
    return temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
  return temperature(1.0)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in values.items() if value is not None}
