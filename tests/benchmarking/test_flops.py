"""Work counted by hand for a decoder that fits on a page, and for the two named shapes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from grpo_jax.benchmarking.flops import layer_weights, step_work
from grpo_jax.benchmarking.shapes import SHAPES, Workload, read_shape
from grpo_jax.models import DecoderConfig, LoraConfig

# V, D, F, N, Q, K, H
SMALL = DecoderConfig(10, 4, 6, 1, 2, 1, 2, tie_embeddings=True)
LOAD = Workload(prompts=1, prompt_tokens=2, group_size=2, completion_tokens=2)


def test_a_layer_has_seven_matrices():
  q, k, v, o, gate, up, down = 4 * 4, 4 * 2, 4 * 2, 4 * 4, 4 * 6, 4 * 6, 6 * 4
  assert layer_weights(SMALL) == q + k + v + o + gate + up + down == 120


def test_shared_prompt_by_hand():
  work = step_work(SMALL, LOAD, shared=True)
  pair = 4 * 2 * 2  # two products, two FLOPs a multiply-add: 2 * 2 for each of Q * H = 4 entries
  # Two prompt tokens, of which the last sees 2; of the other one, in this only layer, nobody reads
  # more than the keys and values. One prediction.
  assert work.prefill_flops == 2 * (120 + 16) + pair * 2 + 2 * 40
  # The second token of two candidates: each is fed one token, which sees the prompt and itself.
  assert work.decode_flops == (2 * 120 * 2 + pair * 2 * 3 + 2 * 40 * 2,)
  # Weights, and 2 prompt tokens and 2 own ones with 2 * K * H = 4 entries each.
  assert work.decode_bytes == (4 * (120 + 40 + 4 * 4),)
  # The prompt as above, and one completion token of each candidate, which sees 3; the second is
  # predicted, but predicts nothing.
  assert work.training_flops == 3 * (2 * (120 + 16 + 120 * 2) + pair * (2 + 2 * 3) + 2 * 40 * 4)
  assert work.optimizer_bytes == 32 * 160


def test_only_the_last_layer_is_spared():
  two = step_work(dataclasses.replace(SMALL, num_layers=2), LOAD, shared=True)
  assert two.prefill_flops == 2 * (120 * 2 + 120 + 16) + 16 * (3 + 2) + 2 * 40


def test_a_repeated_prompt_costs_its_group():
  shared, repeated = (step_work(SMALL, LOAD, shared=share) for share in (True, False))
  assert repeated.prefill_flops == 2 * shared.prefill_flops
  assert repeated.training_flops - shared.training_flops == 3 * (2 * (120 + 16) + 16 * 2)
  assert repeated.decode_flops == shared.decode_flops
  assert repeated.decode_bytes == (4 * (160 + 4 * 6),)


def test_half_precision_moves_half_and_untied_heads_are_weights_of_their_own():
  half = dataclasses.replace(SMALL, dtype="bfloat16")
  full = step_work(SMALL, LOAD, shared=True)
  assert step_work(half, LOAD, shared=True).decode_bytes[0] == full.decode_bytes[0] / 2
  untied = step_work(dataclasses.replace(SMALL, tie_embeddings=False), LOAD, shared=True)
  assert untied.optimizer_bytes == 32 * 200 and untied.flops == full.flops


@pytest.mark.parametrize(("name", "millions"), [("S", 23.6), ("M", 134.5)])
def test_named_shapes_have_the_size_they_are_known_by(name, millions):
  config = SHAPES[name]
  weights = layer_weights(config) + config.vocab_size * config.hidden_size
  assert weights / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_shape_is_a_name_or_a_config_file(tmp_path):
  path = tmp_path / "config.json"
  path.write_text(json.dumps(SHAPES["S"].to_hf()))
  assert read_shape(str(path)) == SHAPES["S"]
  assert read_shape("M", "bfloat16") == dataclasses.replace(SHAPES["M"], dtype="bfloat16")
  for wrong in ("L", str(tmp_path / "missing.json")):
    with pytest.raises(ValueError, match=r"expected S, M, Q, Q1.5 or a config.json"):
      read_shape(wrong)
  path.write_text('{"model_type": "gpt2"}')
  with pytest.raises(ValueError, match=r"config.json: model_type 'gpt2' is not supported"):
    read_shape(str(path))


def test_adapters_have_gradients_and_the_frozen_model_has_none():
  lora = LoraConfig(2, targets=("q", "down"))
  adapters = 2 * (4 + 4) + 2 * (6 + 4)  # A and B of q, [4, 4], and of down, [6, 4]
  full, work = (step_work(SMALL, LOAD, shared=True, lora=one) for one in (None, lora))
  pair = 4 * 2 * 2
  weights = 2 * (120 + 16 + 120 * 2) + 2 * 40 * 4  # as in the test of the shared prompt
  assert full.training_flops == 3 * (weights + pair * (2 + 2 * 3))
  through = 2 * adapters * (2 + 2)  # two prompt tokens, one of each candidate
  assert work.training_flops == 2 * weights + 3 * (pair * (2 + 2 * 3) + through)
  assert work.optimizer_bytes == 32 * adapters
  assert work.decode_flops == full.decode_flops


@pytest.mark.parametrize("wrong", [{"prompts": 0}, {"completion_tokens": 0}, {"group_size": 1}])
def test_workloads_out_of_range_are_refused(wrong):
  with pytest.raises(ValueError, match=f"--{next(iter(wrong))}"):
    Workload(**wrong)
