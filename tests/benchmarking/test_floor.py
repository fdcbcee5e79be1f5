"""The floor's arithmetic, against figures worked out beforehand, and rates that are plausible."""

from __future__ import annotations

import pytest

from grpo_jax.benchmarking.floor import Floor, Rates, floor_of, measure_rates
from grpo_jax.benchmarking.flops import StepWork, step_work
from grpo_jax.benchmarking.shapes import SHAPES, Workload
from grpo_jax.models import DecoderConfig


def test_a_decoded_token_costs_its_products_or_its_memory_traffic():
  work = StepWork(
    prefill_flops=100.0,
    decode_flops=(40.0, 40.0),
    decode_bytes=(10.0, 90.0),  # the first is bound by products (4 s), the second by memory (9 s)
    training_flops=300.0,
    optimizer_bytes=20.0,
  )
  found = floor_of(work, Rates(large=100.0, skinny=10.0, bandwidth=10.0))
  assert found == Floor(sample=1 + 4 + 9, update=3 + 2)
  assert found.total == 19


@pytest.mark.parametrize(
  ("name", "prompt", "shared", "sample", "update"),
  [
    ("S", 256, True, 1.05, 2.31),
    ("S", 256, False, 2.46, 6.51),
    ("M", 256, True, 6.08, 13.4),
    ("M", 256, False, 14.7, 39.1),
    ("S", 1024, True, 1.9, 4.7),
    ("M", 1024, False, 49.6, 143),
  ],
)
def test_floors_of_the_named_shapes(name, prompt, shared, sample, update):
  # Two cores at 185 and 120 GFLOP/s and 33 GB/s, by a program that counted on its own. It had every
  # prompt token pass through the whole last layer, where keys and values are enough for most.
  config, load = SHAPES[name], Workload(prompt_tokens=prompt)
  found = floor_of(step_work(config, load, shared=shared), Rates(185e9, 120e9, 33e9))
  width = config.hidden_size
  a_token = 2 * (2 * width**2 + 3 * width * config.intermediate_size) + 4 * width * prompt / 2
  spared = (load.prompts if shared else load.rows) * (prompt - 1) * a_token / 185e9
  assert found.sample + spared == pytest.approx(sample, rel=0.03)
  assert found.update + 3 * spared == pytest.approx(update, rel=0.03)


def test_measured_rates_are_those_of_a_computer(monkeypatch):
  monkeypatch.setattr("grpo_jax.benchmarking.floor.BANDWIDTH_BYTES", 2**22)
  config = DecoderConfig(64, 32, 48, 1, 2, 1, 16)
  rates = measure_rates(config, Workload(), seconds=0.001)
  assert 1e8 < rates.large < 1e15 and 1e6 < rates.skinny < rates.large
  assert 1e7 < rates.bandwidth < 1e14
