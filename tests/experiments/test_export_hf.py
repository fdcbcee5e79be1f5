"""The export script: dtype, shards, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from grpo_jax.models import (
  DecoderConfig,
  LoraConfig,
  attach,
  init_adapters,
  init_params,
  load_pretrained,
  merge,
  save_adapters,
  save_pretrained,
)
from grpo_jax.tasks import load_tokenizer

SCRIPT = Path(__file__).parents[2] / "experiments/export_hf.py"


@pytest.fixture
def model(tmp_path):
  config = DecoderConfig(40, 16, 32, 2, 2, 1, 8, eos_token_ids=(1,))
  words = Tokenizer(models.WordLevel({"<end>": 1, "hello": 2, "?": 0, "<call>": 3}, "?"))
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words,
    eos_token="<end>",
    additional_special_tokens=["<call>"],
    chat_template="{{ messages[0].content }}",
  )
  params = init_params(config, jax.random.key(0))
  save_pretrained(config, params, tmp_path / "model", tokenizer, dtype="bfloat16")
  return tmp_path / "model"


def _export(*flags):
  command = [sys.executable, SCRIPT, *flags]
  return subprocess.run(command, capture_output=True, text=True)


def test_an_export_keeps_dtype_weights_tokenizer_and_template(model, tmp_path):
  done = _export(f"--model={model}", f"--out={tmp_path / 'out'}", "--max_shard_gb=0.000004")
  assert done.returncode == 0, done.stderr
  assert "Qwen2ForCausalLM in bfloat16, 0.00 GB in " in done.stdout
  assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
  (config, params), (again, back) = (
    load_pretrained(model, None),
    load_pretrained(tmp_path / "out", None),
  )
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, params, back)
  tokenizer = load_tokenizer(tmp_path / "out")
  assert tokenizer("hello")["input_ids"] == [2]
  assert tokenizer.all_special_tokens == ["<end>", "<call>"]
  # What transformers 4 knows; version 5 writes TokenizersBackend and a list of its own name.
  described = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
  assert described["tokenizer_class"] == "PreTrainedTokenizerFast"
  assert described["additional_special_tokens"] == ["<call>"]
  assert not described.keys() & {"extra_special_tokens", "backend", "is_local", "local_files_only"}
  assert tokenizer.chat_template == load_tokenizer(model).chat_template
  assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == 1


def test_an_export_with_adapters_is_their_merge(model, tmp_path):
  config, base = load_pretrained(model, None)
  lora = LoraConfig(2, 4.0, ("q", "down"))
  adapters = jax.tree.map(lambda x: x + 0.1, init_adapters(config, lora, jax.random.key(1)))
  save_adapters(config, adapters, lora, tmp_path / "adapter", str(model))
  done = _export(f"--model={model}", f"--adapter={tmp_path / 'adapter'}", f"--out={tmp_path / 'x'}")
  assert done.returncode == 0, done.stderr
  merged = jax.tree.map(lambda x: x.astype("bfloat16"), merge(attach(base, adapters, lora)))
  jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / "x", None)[1], merged)


def test_an_export_onto_its_source_is_refused(model):
  done = _export(f"--model={model}", f"--out={model.parent / 'x' / '..' / 'model'}")
  assert done.returncode != 0
  assert "must not overwrite its source" in done.stdout + done.stderr


def test_a_missing_model_ends_in_one_sentence(tmp_path):
  done = _export(f"--model={tmp_path / 'nothing'}", f"--out={tmp_path / 'out'}")
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("export_hf: ")
