"""The decoder: configuration, weights, and the pure functions that run it."""

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import (
  Remat,
  decode_step,
  forward,
  logits_of,
  prefill,
)
from grpo_jax.models.kv_cache import PromptCache, empty_completion_cache
from grpo_jax.models.logprobs import TokenLogprobs, completion_logprobs, token_logprobs
from grpo_jax.models.lora import (
  LoraConfig,
  adapter_sha256,
  attach,
  init_adapters,
  load_adapters,
  merge,
  save_adapters,
  with_adapters,
)
from grpo_jax.models.parameters import (
  Params,
  in_bits,
  in_compute_dtype,
  init_params,
  is_matrix,
  layers_apart,
  unstacked,
  with_weights,
)
from grpo_jax.models.presets import config_named
from grpo_jax.models.weights import load_config, load_pretrained, save_pretrained

__all__ = [
  "DecoderConfig",
  "LoraConfig",
  "Params",
  "PromptCache",
  "Remat",
  "TokenLogprobs",
  "adapter_sha256",
  "attach",
  "completion_logprobs",
  "config_named",
  "decode_step",
  "empty_completion_cache",
  "forward",
  "in_bits",
  "in_compute_dtype",
  "init_adapters",
  "init_params",
  "is_matrix",
  "layers_apart",
  "load_adapters",
  "load_config",
  "load_pretrained",
  "logits_of",
  "merge",
  "prefill",
  "save_adapters",
  "save_pretrained",
  "token_logprobs",
  "unstacked",
  "with_adapters",
  "with_weights",
]
