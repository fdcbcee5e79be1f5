"""The sizes that ship by name are the published ones."""

from __future__ import annotations

import json

import pytest

from grpo_jax.models import DecoderConfig, config_named
from grpo_jax.models.parameters import parameter_count
from grpo_jax.models.presets import PRESET_NAMES, preset

# Parameters of each size, counted by transformers (`model.num_parameters()`), ties counted once.
PUBLISHED = {
  "qwen2.5-0.5b": 494_032_768,
  "qwen2.5-1.5b": 1_543_714_304,
  "qwen2.5-3b": 3_085_938_688,
  "qwen2.5-7b": 7_615_616_512,
  "qwen2.5-14b": 14_770_033_664,
  "qwen2.5-32b": 32_763_876_352,
  "qwen2.5-72b": 72_706_203_648,
}


def test_all_seven_sizes_are_there():
  assert set(PRESET_NAMES) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name):
  config = config_named(name)
  assert parameter_count(config) == PUBLISHED[name]


def test_hub_ids_of_the_sizes_need_no_network():
  assert preset("Qwen/Qwen2.5-7B-Instruct") == preset("qwen2.5-7b") == preset("Qwen/Qwen2.5-7B")
  assert preset("Qwen/Qwen2.5-8B") is None and preset("Qwen/Qwen2.5-Coder-7B") is None


def test_a_config_file_or_its_folder_is_read(tmp_path):
  config = DecoderConfig(64, 32, 48, 2, 4, 2, 8)
  path = tmp_path / "config.json"
  path.write_text(json.dumps(config.to_hf()), encoding="utf-8")
  assert config_named(str(path)) == config_named(str(tmp_path)) == config
