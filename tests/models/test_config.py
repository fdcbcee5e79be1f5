"""Configs of real checkpoints, and features that must not be passed over in silence."""

from __future__ import annotations

import dataclasses

import pytest

from grpo_jax.models.config import DecoderConfig, token_ids

# What the published config.json files say, as far as it matters here.
QWEN2_5_7B = {
  "architectures": ["Qwen2ForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151645,
  "hidden_act": "silu",
  "hidden_size": 3584,
  "intermediate_size": 18944,
  "max_position_embeddings": 32768,
  "max_window_layers": 28,
  "model_type": "qwen2",
  "num_attention_heads": 28,
  "num_hidden_layers": 28,
  "num_key_value_heads": 4,
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0,
  "sliding_window": 131072,
  "tie_word_embeddings": False,
  "use_sliding_window": False,
  "vocab_size": 152064,
}
QWEN3_0_6B = {
  "attention_bias": False,
  "eos_token_id": 151645,
  "head_dim": 128,
  "hidden_size": 1024,
  "intermediate_size": 3072,
  "max_position_embeddings": 40960,
  "max_window_layers": 28,
  "model_type": "qwen3",
  "num_attention_heads": 16,
  "num_hidden_layers": 28,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06,
  "rope_scaling": None,
  "rope_theta": 1000000,
  "sliding_window": None,
  "tie_word_embeddings": True,
  "use_sliding_window": False,
  "vocab_size": 151936,
}
LLAMA3_2_1B = {
  "attention_bias": False,
  "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009],
  "head_dim": 64,
  "hidden_size": 2048,
  "intermediate_size": 8192,
  "max_position_embeddings": 131072,
  "mlp_bias": False,
  "model_type": "llama",
  "num_attention_heads": 32,
  "num_hidden_layers": 16,
  "num_key_value_heads": 8,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
  },
  "rope_theta": 500000.0,
  "tie_word_embeddings": True,
  "vocab_size": 128256,
}
MISTRAL_7B_V3 = {
  "bos_token_id": 1,
  "eos_token_id": 2,
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "max_position_embeddings": 32768,
  "model_type": "mistral",
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05,
  "rope_theta": 1000000.0,
  "sliding_window": None,
  "tie_word_embeddings": False,
  "vocab_size": 32768,
}
# DeepSeek-R1-Distill comes in Qwen's and in Llama's shape; these keys differ from the originals'.
R1_DISTILL_QWEN_7B = QWEN2_5_7B | {
  "bos_token_id": 151643,
  "eos_token_id": 151643,
  "max_position_embeddings": 131072,
  "rope_theta": 10000,
  "sliding_window": 4096,
  "use_mrope": False,
}
R1_DISTILL_LLAMA_8B = LLAMA3_2_1B | {
  "eos_token_id": 128001,
  "head_dim": 128,
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_hidden_layers": 32,
  "rope_scaling": LLAMA3_2_1B["rope_scaling"] | {"factor": 8.0},
  "tie_word_embeddings": False,
}
PUBLISHED = {
  "qwen2": QWEN2_5_7B,
  "qwen3": QWEN3_0_6B,
  "llama": LLAMA3_2_1B,
  "mistral": MISTRAL_7B_V3,
  "r1_distill_qwen": R1_DISTILL_QWEN_7B,
  "r1_distill_llama": R1_DISTILL_LLAMA_8B,
}
COMPARED = (
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "rms_norm_eps",
  "tie_word_embeddings",
  "max_position_embeddings",
  "sliding_window",
  "eos_token_id",
  "bos_token_id",
  "pad_token_id",
  "hidden_act",
)


def test_qwen_2_5_is_read_as_published():
  config = DecoderConfig.from_hf(QWEN2_5_7B)
  assert (config.num_heads, config.num_kv_heads, config.head_dim) == (28, 4, 128)
  assert (config.attention_bias, config.output_bias, config.qk_norm) == (True, False, False)
  assert (config.rope_theta, config.rope_scaling) == (1e6, None)
  assert (config.eos_token_ids, config.bos_token_id) == ((151645,), 151643)
  assert not config.tie_embeddings


def test_families_differ_by_config_alone():
  qwen3, llama = DecoderConfig.from_hf(QWEN3_0_6B), DecoderConfig.from_hf(LLAMA3_2_1B)
  assert (qwen3.qk_norm, qwen3.attention_bias, qwen3.head_dim) == (True, False, 128)
  assert (llama.qk_norm, llama.attention_bias, llama.head_dim) == (False, False, 64)
  assert llama.rope_scaling.kind == "llama3"
  assert llama.eos_token_ids == (128001, 128008, 128009)
  biased = DecoderConfig.from_hf({**LLAMA3_2_1B, "attention_bias": True})
  assert biased.attention_bias
  assert biased.output_bias


def test_missing_keys_get_the_familys_own_defaults():
  qwen2 = {**QWEN2_5_7B}
  for key in ("num_key_value_heads", "rope_theta", "rms_norm_eps", "tie_word_embeddings"):
    del qwen2[key]
  config = DecoderConfig.from_hf(qwen2)
  assert (config.num_kv_heads, config.rope_theta, config.rms_norm_eps) == (28, 10000.0, 1e-6)
  assert not config.tie_embeddings


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_config_survives_writing_and_reading(family):
  config = DecoderConfig.from_hf(PUBLISHED[family])
  assert DecoderConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("family", PUBLISHED)
def test_transformers_reads_what_is_written(family):
  transformers = pytest.importorskip("transformers")
  written = transformers.AutoConfig.for_model(**DecoderConfig.from_hf(PUBLISHED[family]).to_hf())
  original = transformers.AutoConfig.for_model(**PUBLISHED[family])
  for name in COMPARED:
    assert getattr(written, name, None) == getattr(original, name, None), name
  wanted = {"type": None} | original.rope_parameters
  assert {"type": None} | written.rope_parameters | {"type": None} == wanted


def test_sampling_defaults_do_not_tell_configs_apart():
  config = DecoderConfig.from_hf(QWEN2_5_7B)
  other = dataclasses.replace(config, generation_json='{"temperature": 0.7}')
  assert config == other
  assert hash(config) == hash(other)


@pytest.mark.parametrize(
  ("base", "change", "named"),
  [
    (QWEN2_5_7B, {"model_type": "qwen2_moe"}, "'qwen2_moe'.*qwen2, qwen3, llama, mistral"),
    (QWEN2_5_7B, {"model_type": None}, "model_type None"),
    (LLAMA3_2_1B, {"layer_types": ["sliding_attention"] * 16}, "sliding window"),
    (QWEN3_0_6B, {"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
    (QWEN2_5_7B, {"is_causal": False}, "is_causal"),
    (LLAMA3_2_1B, {"mlp_bias": True}, "mlp_bias"),
    (MISTRAL_7B_V3, {"attention_bias": True}, "attention_bias"),
    (QWEN2_5_7B, {"quantization_config": {"bits": 4}}, "quantization_config"),
    (QWEN2_5_7B, {"dual_chunk_attention_config": {"chunk_size": 1}}, "dual_chunk_attention"),
    (QWEN2_5_7B, {"hidden_act": "gelu"}, "'gelu'"),
    (QWEN2_5_7B, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    (QWEN2_5_7B, {"num_key_value_heads": 5}, "28 query heads cannot share 5"),
    (QWEN2_5_7B, {"hidden_size": 28 * 9}, "head_dim is 9"),
    (QWEN2_5_7B, {"vocab_size": 0}, "vocab_size"),
  ],
)
def test_features_that_the_decoder_lacks_are_named(base, change, named):
  with pytest.raises(ValueError, match=named):
    DecoderConfig.from_hf({**base, **change})


def test_a_missing_width_is_named():
  with pytest.raises(ValueError, match="qwen2 model must give 'hidden_size'"):
    DecoderConfig.from_hf({k: v for k, v in QWEN2_5_7B.items() if k != "hidden_size"})


@pytest.mark.parametrize("window", [{"max_window_layers": 28}, {"sliding_window": None}, {}])
def test_a_window_that_no_layer_uses_or_no_context_fills_is_none(window):
  assert not DecoderConfig.from_hf({**QWEN2_5_7B, "use_sliding_window": True, **window}).windows
  assert not DecoderConfig.from_hf({**MISTRAL_7B_V3, "sliding_window": 32768}).windows


@pytest.mark.parametrize(
  ("hf", "windows"),
  [
    (
      {**QWEN2_5_7B, "use_sliding_window": True, "sliding_window": 512, "max_window_layers": 20},
      (0,) * 20 + (512,) * 8,
    ),
    ({**MISTRAL_7B_V3, "sliding_window": 4096}, (4096,) * 32),
    ({k: v for k, v in MISTRAL_7B_V3.items() if k != "sliding_window"}, (4096,) * 32),
  ],
)
def test_each_layer_s_window_is_read_and_written(hf, windows):
  config = DecoderConfig.from_hf(hf)
  assert config.windows == config.layer_windows == windows
  assert DecoderConfig.from_hf(config.to_hf()) == config


def test_windows_that_a_checkpoint_cannot_say_are_refused():
  config = DecoderConfig.from_hf(MISTRAL_7B_V3)
  with pytest.raises(ValueError, match=r"expected 32, none of them negative"):
    dataclasses.replace(config, windows=(8,))
  with pytest.raises(ValueError, match="mistral checkpoints cannot have windows"):
    dataclasses.replace(config, windows=(8, 0) * 16).to_hf()


def test_a_family_cannot_be_written_with_what_it_does_not_have():
  config = dataclasses.replace(DecoderConfig.from_hf(QWEN2_5_7B), qk_norm=True)
  with pytest.raises(ValueError, match="qwen2 checkpoints cannot have qk_norm=True"):
    config.to_hf()


def test_token_ids_come_alone_listed_or_not_at_all():
  assert token_ids(None) == ()
  assert token_ids(0) == (0,)
  assert token_ids([3, 4]) == (3, 4)
