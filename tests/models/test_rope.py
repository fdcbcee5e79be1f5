"""Rotary frequencies: numbers by hand, and transformers' where torch is at hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.rope import RopeScaling, read_rope, rope_frequencies

LLAMA3 = RopeScaling("llama3", 8.0, 64, low_freq_factor=1.0, high_freq_factor=4.0)
SCALINGS = {
  "none": None,
  "linear": RopeScaling("linear", 3.0),
  "llama3": LLAMA3,
  "yarn": RopeScaling("yarn", 4.0, 64),
  "yarn_given_factor": RopeScaling("yarn", 4.0, 64, attention_factor=0.5),
  "yarn_mscale": RopeScaling("yarn", 40.0, 64, mscale=0.7, mscale_all_dim=1.0, beta_fast=8.0),
  "yarn_untruncated": RopeScaling("yarn", 4.0, 64, truncate=False),
  "yarn_one_pair": RopeScaling("yarn", 4.0, 6),
}


def _config(scaling, theta=10000.0, width=16):
  return DecoderConfig(11, 32, 32, 1, 2, 1, width, rope_theta=theta, rope_scaling=scaling)


def test_plain_frequencies_are_powers_of_theta():
  frequencies, factor = rope_frequencies(_config(None, theta=10000.0, width=8))
  np.testing.assert_allclose(frequencies, [1.0, 0.1, 0.01, 0.001], rtol=1e-6)
  assert frequencies.dtype == np.float32
  assert factor == 1.0


def test_linear_scaling_divides_every_frequency():
  plain, _ = rope_frequencies(_config(None))
  scaled, factor = rope_frequencies(_config(RopeScaling("linear", 4.0)))
  np.testing.assert_array_equal(scaled * 4, plain)
  assert factor == 1.0


def test_llama3_keeps_short_waves_and_slows_long_ones():
  plain, _ = rope_frequencies(_config(None))
  scaled, _ = rope_frequencies(_config(LLAMA3))
  waves = 2 * math.pi / plain  # the borders are 64 / 4 = 16 and 64 / 1 = 64 tokens
  np.testing.assert_array_equal(scaled[waves < 16], plain[waves < 16])
  np.testing.assert_array_equal(scaled[waves > 64], plain[waves > 64] / 8)
  middle = (waves > 16) & (waves < 64)  # 19.9 and 62.8 tokens
  blend = (64 / waves[middle] - 1) / (4 - 1)
  expected = (1 - blend) * plain[middle] / 8 + blend * plain[middle]
  np.testing.assert_allclose(scaled[middle], expected, rtol=1e-6)
  assert middle.sum() == 2


def test_yarn_keeps_fast_pairs_slows_slow_ones_and_sharpens_attention():
  plain, _ = rope_frequencies(_config(None))
  scaled, factor = rope_frequencies(_config(SCALINGS["yarn"]))
  # A pair turns once in 64 tokens at index 16 ln(64 / 2 pi) / (2 ln 10000) = 2.02, and 32 times
  # at an index below 0: the blend runs from 0 to 3.
  ramp = np.array([0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1])
  np.testing.assert_allclose(scaled, plain / 4 * ramp + plain * (1 - ramp), rtol=1e-6)
  assert factor == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_equal_transformers(name):
  torch = pytest.importorskip("torch")
  import transformers
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
  from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

  config = _config(SCALINGS[name], theta=5e5)
  scaling = config.rope_scaling
  reference = transformers.LlamaConfig(
    head_dim=16,
    max_position_embeddings=512,
    rope_parameters={"rope_theta": 5e5, **(scaling.to_hf() if scaling else {})},
  )
  if scaling is None:
    wanted, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(reference)
  else:
    wanted, factor = ROPE_INIT_FUNCTIONS[scaling.kind](reference, torch.device("cpu"))
  ours, our_factor = rope_frequencies(config)
  np.testing.assert_allclose(ours, wanted.numpy(), rtol=3e-7, atol=0)
  assert our_factor == pytest.approx(factor)


@pytest.mark.parametrize("scaling", [s for s in SCALINGS.values() if s])
def test_scaling_survives_writing_and_reading(scaling):
  assert read_rope({"rope_theta": 7.0, "rope_scaling": scaling.to_hf()}) == (7.0, scaling)
  both = {"rope_theta": 7.0, **scaling.to_hf()}
  assert read_rope({"rope_parameters": both}) == (7.0, scaling)


def test_the_pretrained_context_falls_back_to_the_whole_one():
  scaling = {"rope_type": "yarn", "factor": 2.0}
  _, read = read_rope({"rope_scaling": scaling, "max_position_embeddings": 77})
  assert read.original_max_position_embeddings == 77


@pytest.mark.parametrize(
  ("hf", "named"),
  [
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "by layer type"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "novelty": 1}}, "novelty"),
    ({"rope_scaling": {"type": "linear"}}, "factor"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor, high_freq_factor"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "original_max_position_embeddings"),
  ],
)
def test_scaling_that_the_decoder_lacks_is_named(hf, named):
  with pytest.raises(ValueError, match=named):
    read_rope(hf)
