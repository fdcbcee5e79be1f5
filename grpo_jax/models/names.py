"""The one table of parameter names and shapes, which import and export share."""

from __future__ import annotations

from typing import NamedTuple

from grpo_jax.models.config import DecoderConfig


class Entry(NamedTuple):
  """One parameter: where it lies in our tree, and under which name in a checkpoint.

  Attributes:
    path: keys from the root of the parameter tree.
    name: the Hugging Face tensor name.
    shape: our shape; kernels are [in, out].
    turned: the checkpoint stores the transpose.
  """

  path: tuple[str, ...]
  name: str
  shape: tuple[int, ...]
  turned: bool = False

  @property
  def stored_shape(self) -> tuple[int, ...]:
    """The shape in the checkpoint."""
    return self.shape[::-1] if self.turned else self.shape


def name_table(config: DecoderConfig) -> list[Entry]:
  """Every parameter of a decoder, in the order in which checkpoints hold them."""
  d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
  q, k = config.num_heads * h, config.num_kv_heads * h
  table = [
    Entry(("embed", "embedding"), "model.embed_tokens.weight", (config.vocab_size, d), False)
  ]

  def norm(layer: str, ours: str, name: str, width: int) -> None:
    table.append(Entry((layer, ours, "scale"), f"{name}.weight", (width,)))

  def dense(layer: str, ours: str, name: str, shape: tuple[int, int], bias: bool = False) -> None:
    table.append(Entry((layer, ours, "kernel"), f"{name}.weight", shape, True))
    if bias:
      table.append(Entry((layer, ours, "bias"), f"{name}.bias", shape[1:]))

  for number in range(config.num_layers):
    layer, prefix = f"layers_{number}", f"model.layers.{number}"
    norm(layer, "attn_norm", f"{prefix}.input_layernorm", d)
    dense(layer, "q", f"{prefix}.self_attn.q_proj", (d, q), config.attention_bias)
    dense(layer, "k", f"{prefix}.self_attn.k_proj", (d, k), config.attention_bias)
    dense(layer, "v", f"{prefix}.self_attn.v_proj", (d, k), config.attention_bias)
    if config.qk_norm:
      norm(layer, "q_norm", f"{prefix}.self_attn.q_norm", h)
      norm(layer, "k_norm", f"{prefix}.self_attn.k_norm", h)
    dense(layer, "o", f"{prefix}.self_attn.o_proj", (q, d), config.output_bias)
    norm(layer, "mlp_norm", f"{prefix}.post_attention_layernorm", d)
    dense(layer, "gate", f"{prefix}.mlp.gate_proj", (d, f))
    dense(layer, "up", f"{prefix}.mlp.up_proj", (d, f))
    dense(layer, "down", f"{prefix}.mlp.down_proj", (f, d))
  table.append(Entry(("final_norm", "scale"), "model.norm.weight", (d,)))
  if not config.tie_embeddings:
    table.append(Entry(("head", "kernel"), "lm_head.weight", (d, config.vocab_size), True))
  return table
