"""The decoder's shape, read from and written as a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from grpo_jax.models.rope import RopeScaling, full_rope, read_local_theta, read_rope

Dtype = Literal["float32", "bfloat16", "float16"]
ARCHITECTURES = {
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "gemma3_text": "Gemma3ForCausalLM",
}


_OPTIONAL_BIAS = ("llama", "qwen3", "gemma3_text")
# What a family may lack, so that it is lost when its config.json is written.
_WRITTEN = (
  *("attention_bias", "output_bias", "qk_norm", "activation", "post_norms", "norm_offset"),
  *("scale_embedding", "query_pre_attn_scalar", "local_rope_theta", "windows"),
)


@dataclass(frozen=True)
class DecoderConfig:
  """A decoder-only transformer: RMSNorm, grouped-query attention, RoPE and a gated mlp.

  Attributes:
    vocab_size: rows of the embedding (V).
    hidden_size: model width (D).
    intermediate_size: mlp width (F).
    num_layers: decoder layers (N).
    num_heads: query heads (Q).
    num_kv_heads: key/value heads (K); divides `num_heads`.
    head_dim: width of a head (H); even.
    rms_norm_eps: added to the mean square in every RMSNorm.
    rope_theta: base of the rotary frequencies.
    rope_scaling: how they are stretched, or None.
    tie_embeddings: the output head is the embedding's transpose.
    attention_bias: q, k and v have biases.
    output_bias: the attention's output projection has one too.
    qk_norm: RMSNorm on every query and key head (Qwen3).
    activation: of the gated mlp; `silu` (SwiGLU) or `gelu_tanh` (GeGLU, Gemma).
    post_norms: a layer's two results are normalised, too, before they are added (Gemma).
    norm_offset: added to every norm's scale; Gemma stores them less 1.
    scale_embedding: embeddings are multiplied by the root of D (Gemma).
    query_pre_attn_scalar: scores are divided by its root; 0 is `head_dim`.
    local_rope_theta: base of the rotary frequencies, unscaled, in layers with a window; 0 is as in
      the others.
    windows: for each layer how many tokens back it attends to, itself included; 0 is all. Empty
      when all layers attend to everything.
    max_position_embeddings: longest context in tokens that the checkpoint is made for.
    dtype: compute dtype; norms, RoPE, softmax and losses stay float32.
    model_type: the Hugging Face family that `to_hf` writes.
    eos_token_ids: tokens that end a turn, as the checkpoint says.
    bos_token_id: or None.
    pad_token_id: or None.
    generation_json: the checkpoint's whole `generation_config.json`, kept for export only.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rms_norm_eps: float = 1e-6
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  tie_embeddings: bool = False
  attention_bias: bool = True
  output_bias: bool = False
  qk_norm: bool = False
  activation: Literal["silu", "gelu_tanh"] = "silu"
  post_norms: bool = False
  norm_offset: float = 0.0
  scale_embedding: bool = False
  query_pre_attn_scalar: int = 0
  local_rope_theta: float = 0.0
  windows: tuple[int, ...] = ()
  max_position_embeddings: int = 32768
  dtype: Dtype = "float32"
  model_type: str = "qwen2"
  eos_token_ids: tuple[int, ...] = ()
  bos_token_id: int | None = None
  pad_token_id: int | None = None
  # Two checkpoints that differ in their sampling defaults only must share their compiled programs.
  generation_json: str = dataclasses.field(default="", compare=False, repr=False)

  def __post_init__(self) -> None:
    for name in (
      "vocab_size",
      "hidden_size",
      "intermediate_size",
      "num_layers",
      "num_heads",
      "num_kv_heads",
      "head_dim",
      "max_position_embeddings",
    ):
      value = getattr(self, name)
      if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive whole number")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly"
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim is {self.head_dim}; rotary embeddings need an even width")
    if self.windows and (len(self.windows) != self.num_layers or min(self.windows) < 0):
      raise ValueError(f"windows={self.windows}; expected {self.num_layers}, none of them negative")
    if self.dtype not in get_args(Dtype):
      raise ValueError(f"dtype is {self.dtype!r}; {_one_of(get_args(Dtype))}")
    if self.model_type not in ARCHITECTURES:
      raise ValueError(f"model_type {self.model_type!r} is not supported; {_one_of(ARCHITECTURES)}")

  @property
  def layer_windows(self) -> tuple[int, ...]:
    """The window of each layer, 0 where it attends to everything."""
    return self.windows or (0,) * self.num_layers

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any]) -> DecoderConfig:
    """Reads the mapping in a Hugging Face `config.json`; dropout is ignored, as in evaluation.

    Raises:
      ValueError: the checkpoint uses a feature that this decoder does not have (the message names
        it), or the mapping is no decoder config.
    """
    family = hf.get("model_type")
    if family not in ARCHITECTURES:
      raise ValueError(f"model_type {family!r} is not supported; {_one_of(ARCHITECTURES)}")
    _refuse_unsupported(hf, family)
    try:
      hidden, heads = hf["hidden_size"], hf["num_attention_heads"]
      biases = bool(hf.get("attention_bias", False)) and family in _OPTIONAL_BIAS
      gemma = family == "gemma3_text"
      theta, scaling = read_rope(full_rope(hf) if gemma else hf)
      return cls(
        vocab_size=hf["vocab_size"],
        hidden_size=hidden,
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=_or(
          hf.get("num_key_value_heads"), {"mistral": 8, "gemma3_text": 4}.get(family, heads)
        ),
        head_dim=_or(
          hf.get("head_dim"), {"qwen3": 128, "gemma3_text": 256}.get(family, hidden // heads)
        ),
        rms_norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=bool(hf.get("tie_word_embeddings", gemma)),
        attention_bias=family == "qwen2" or biases,
        output_bias=biases,
        qk_norm=family in ("qwen3", "gemma3_text"),
        activation="gelu_tanh" if gemma else "silu",
        post_norms=gemma,
        norm_offset=float(gemma),
        scale_embedding=gemma,
        query_pre_attn_scalar=hf.get("query_pre_attn_scalar", 256) if gemma else 0,
        local_rope_theta=read_local_theta(hf) if gemma else 0.0,
        windows=_read_windows(hf, family),
        max_position_embeddings=_longest(hf, family),
        model_type=family,
        eos_token_ids=token_ids(hf.get("eos_token_id")),
        bos_token_id=hf.get("bos_token_id"),
        pad_token_id=hf.get("pad_token_id"),
      )
    except KeyError as missing:
      raise ValueError(f"the config.json of a {family} model must give {missing}") from None

  def to_hf(self) -> dict[str, Any]:
    """Returns the mapping for `config.json`, in the form that transformers 4, 5 and vLLM read."""
    hf: dict[str, Any] = {
      "architectures": [ARCHITECTURES[self.model_type]],
      "model_type": self.model_type,
      "vocab_size": self.vocab_size,
      "hidden_size": self.hidden_size,
      "intermediate_size": self.intermediate_size,
      "num_hidden_layers": self.num_layers,
      "num_attention_heads": self.num_heads,
      "num_key_value_heads": self.num_kv_heads,
      "head_dim": self.head_dim,
      "hidden_act": "silu",
      "rms_norm_eps": self.rms_norm_eps,
      "rope_theta": self.rope_theta,
      "rope_scaling": None,
      "tie_word_embeddings": self.tie_embeddings,
      "max_position_embeddings": self.max_position_embeddings,
      "attention_dropout": 0.0,
      "use_cache": True,
      "torch_dtype": self.dtype,
      "bos_token_id": self.bos_token_id,
      "eos_token_id": _one_or_list(self.eos_token_ids),
      "pad_token_id": self.pad_token_id,
    }
    if self.rope_scaling is not None:
      hf["rope_scaling"] = self.rope_scaling.to_hf()
    window = max(self.layer_windows)
    if self.model_type in ("qwen2", "qwen3"):
      hf |= {"use_sliding_window": window > 0, "sliding_window": window or None}
      hf["max_window_layers"] = self.layer_windows.index(window) if window else self.num_layers
    if self.model_type == "mistral":
      hf["sliding_window"] = window or None
    elif window:
      kinds = {True: "sliding_attention", False: "full_attention"}
      hf["layer_types"] = [kinds[each > 0] for each in self.layer_windows]
    if self.model_type in _OPTIONAL_BIAS:
      hf["attention_bias"] = self.attention_bias
    if self.model_type == "gemma3_text":
      del hf["hidden_act"]
      hf |= {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": self.query_pre_attn_scalar,
        "rope_local_base_freq": self.local_rope_theta,
        "sliding_window": window,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
      }
    if self.model_type == "llama":
      hf["mlp_bias"] = False
    wanted = DecoderConfig.from_hf(hf)
    for field in _WRITTEN:
      if getattr(wanted, field) != getattr(self, field):
        value = getattr(self, field)
        raise ValueError(f"{self.model_type} checkpoints cannot have {field}={value}")
    return hf


def token_ids(value: Any) -> tuple[int, ...]:
  """A token id that may be missing, alone or in a list, as a tuple."""
  if value is None:
    return ()
  return (value,) if isinstance(value, int) else tuple(value)


def _refuse_unsupported(hf: Mapping[str, Any], family: str) -> None:
  gemma = family == "gemma3_text"
  key, known = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
  if hf.get(key, known) not in (known, {"silu": "swish"}.get(known)):
    raise ValueError(f"{key} {hf[key]!r} is not supported; expected {known!r}")
  for flag in _UNSUPPORTED:
    if hf.get(flag):
      raise ValueError(f"the checkpoint uses {flag}, which this decoder does not have")
  if family == "mistral" and hf.get("attention_bias"):
    raise ValueError("the checkpoint uses attention_bias, which Mistral models do not have")
  # transformers honours this in every family: embedding models made of a decoder see both ways.
  if hf.get("is_causal") is False:
    raise ValueError("the checkpoint sets is_causal=false; this decoder's attention is causal only")
  if others := sorted(set(hf.get("layer_types") or ()) - {"full_attention", "sliding_attention"}):
    raise ValueError(f"the checkpoint has {', '.join(others)} layers, which this decoder does not")
  if family == "llama" and "sliding_attention" in (hf.get("layer_types") or ()):
    raise ValueError("the checkpoint uses a sliding window, which Llama models do not have")


_UNSUPPORTED = (
  *(
    "mlp_bias",
    "quantization_config",
    "dual_chunk_attention_config",
    "use_bidirectional_attention",
  ),
  *("final_logit_softcapping", "attn_logit_softcapping"),
)


def _read_windows(hf: Mapping[str, Any], family: str) -> tuple[int, ...]:
  """Each layer's window, as transformers reads it; one that the context never fills is none."""
  layers = hf["num_hidden_layers"]
  # transformers takes a missing key for a window of 4,096 tokens.
  window = hf.get("sliding_window", 4096)
  # Gemma's layers with a window have other frequencies: they stay apart however wide it is.
  if family == "gemma3_text" and window is None:
    raise ValueError("sliding_window is null; a Gemma 3 model needs one")
  elif family == "gemma3_text":
    pattern = hf.get("sliding_window_pattern", hf.get("_sliding_window_pattern", 6))
    slides = [(n + 1) % pattern > 0 for n in range(layers)]
  elif family == "llama" or window is None or window >= _longest(hf, family):
    return ()
  elif family in ("qwen2", "qwen3"):
    if not hf.get("use_sliding_window"):
      return ()
    slides = [n >= hf.get("max_window_layers", 28) for n in range(layers)]
  else:
    slides = [True] * layers
  if types := hf.get("layer_types"):
    slides = [kind == "sliding_attention" for kind in types]
  return tuple(window * slid for slid in slides) if any(slides) else ()


def _longest(hf: Mapping[str, Any], family: str) -> int:
  defaults = {"llama": 2048, "mistral": 131072, "gemma3_text": 131072}
  return hf.get("max_position_embeddings", defaults.get(family, 32768))


def _or(value: Any, default: Any) -> Any:
  return default if value is None else value


def _one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
  return (ids[0] if len(ids) == 1 else list(ids)) if ids else None


def _one_of(names: Any) -> str:
  return f"expected one of {', '.join(names)}"
