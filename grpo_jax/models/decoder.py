"""The Qwen 2.5 decoder as a Flax Linen module, and the pure functions the rest of the house calls.

Three ways in share one set of weights and one attention core:

* `prefill`: prompts `[P, S]` -> their key/value cache, stored once per prompt.
* `decode_step`: one token for each of `[P, G]` candidates, against that cache and their own.
* `completion_logprobs`: `[P, G, T]` completions given the prompts, differentiable.

A prompt and its G completions lie in one row of `S + G * T` tokens, `[prompt | c_1 | ... | c_G]`.
Everything that works token by token (projections, norms, MLP) runs on the whole row at once;
only attention knows the tree: a prompt token sees its past, a completion token sees the prompt and
its own past. So a prompt is encoded once for its whole group, in the backward pass too, and the
result is exactly that of the repeated layout. From the last layer on a row has only the tokens that
predict a completion's: of a prompt's others nobody reads more than the keys and values.

Shape legend: P prompts, G group, S prompt tokens, T completion tokens, L tokens in a row, D width,
Q query heads, K key/value heads, R = Q / K, H head width, V vocabulary, N layers.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.kv_cache import CompletionCache, PromptCache
from grpo_jax.models.layers import PRODUCT, RMSNorm, stored
from grpo_jax.models.rope import rope_frequencies
from grpo_jax.models.transformer_layer import Layer, Row, apply_layer
from grpo_jax.placement import looked_up, split_prompts
from grpo_jax.types import Array

Params = dict[str, Any]
# What of a layer the backward pass computes again: nothing, all but the products with weights, all.
Remat = Literal["none", "dots", "layers"]


class Decoder(nn.Module):
  """The decoder stack; `trunk` is the one body behind every public function of this file."""

  config: DecoderConfig

  def setup(self):
    c = self.config
    self.embed = nn.Embed(c.vocab_size, c.hidden_size, dtype=jnp.dtype(c.dtype))
    self.layers = [Layer(c) for _ in range(c.num_layers)]
    self.final_norm = RMSNorm(c.rms_norm_eps)
    if not c.tie_embeddings:
      self.head = nn.Dense(c.vocab_size, use_bias=False, dtype=jnp.dtype(c.dtype))

  def trunk(self, tokens, row: Row, prompt_cache=None, completion_cache=None, step=None,
            remat: Remat = "none", predicting: bool = False):  # fmt: skip
    """Runs the stack on tokens [P, L].

    Returns:
      The normalised hidden states [P, L, D], or with `predicting` those of `row.predicting` alone,
      and each layer's prompt and completion caches (none with rematerialisation, which takes whole
      rows only).
    """
    c = self.config
    frequencies, factor = rope_frequencies(c)
    angles = row.positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies)
    rope = (stored(jnp.cos(angles) * factor), stored(jnp.sin(angles) * factor))
    x = looked_up(self.embed(tokens))
    prompts, owns = [], []
    if remat != "none":
      x = self._scan(x, rope, row, remat)
      x = row.predicting(x) if predicting else x
    else:
      for i, layer in enumerate(self.layers):
        given = None if prompt_cache is None else prompt_cache[i]
        own = None if completion_cache is None else completion_cache[i]
        last = predicting and i == c.num_layers - 1
        args = (x, rope, row, given, own, step, last)
        if self.is_initializing():  # there are no parameters yet
          x, prompt, own = layer(*args)
        else:
          x, prompt, own = apply_layer(c, self._parameters(i), *args)
        x = split_prompts(x)
        prompts.append(prompt)
        owns.append(own)
    return self.final_norm(x.reshape(-1, x.shape[-1])).reshape(x.shape), tuple(prompts), tuple(owns)

  def _scan(self, x, rope, row: Row, remat: Remat):
    """Maps x [P, L, D] through all layers, keeping for the backward pass what `remat` says.

    A loop over the layers' parameters, stacked in the compute dtype, and not one layer after the
    other: the program is compiled in the time of one layer, and a compiler that would compute a
    layer again long before its turn (libtpu 0.0.42, while memory lasts) cannot. So the last layer
    takes whole rows here, like the others: without most of the prompt it would be a second one.
    """
    layers = [self._parameters(i) for i in range(self.config.num_layers)]
    layers = [in_compute_dtype(self.config, layer) for layer in layers]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

    def body(x, params):
      x, _, _ = apply_layer(self.config, params, x, rope, row, None, None, None)
      return split_prompts(x), None

    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(PRODUCT) if remat == "dots" else None
    return lax.scan(jax.checkpoint(body, policy=policy, prevent_cse=False), x, stacked)[0]

  def _parameters(self, layer: int) -> Params:
    return self.variables["params"][f"layers_{layer}"]

  def __call__(self, tokens):
    """Touches every parameter, for initialisation."""
    mask = jnp.ones(tokens.shape, bool)
    row = Row(tokens.shape[1], 0, positions_of(mask), mask)
    hidden, _, _ = self.trunk(tokens, row)
    return hidden if self.config.tie_embeddings else self.head(hidden)


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
  """Draws random float32 parameters (normal kernels of std 0.02, as Qwen's, unit norms)."""
  shapes = jax.eval_shape(
    lambda k: Decoder(config).init(k, jnp.zeros((1, 2), jnp.int32))["params"], key
  )
  leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)

  def draw(i, path, leaf):
    name = path[-1].key
    if name == "scale":
      return jnp.ones(leaf.shape, jnp.float32)
    if name == "bias":
      return jnp.zeros(leaf.shape, jnp.float32)
    return 0.02 * jax.random.normal(jax.random.fold_in(key, i), leaf.shape, jnp.float32)

  return jax.tree.unflatten(tree, [draw(i, p, leaf) for i, (p, leaf) in enumerate(leaves)])


def in_compute_dtype(config: DecoderConfig, params: Params) -> Params:
  """Matrices in the compute dtype; vectors as they are, for the layers cast these themselves."""
  return jax.tree.map(lambda x: x.astype(config.dtype) if x.ndim > 1 else x, params)


def positions_of(mask: Array) -> jax.Array:
  """RoPE positions [.., L] int32 of a mask [.., L]: the n-th real token is at n, on either side."""
  return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=-1) - 1, 0)


def head_kernel(config: DecoderConfig, params: Params) -> jax.Array:
  """The output projection as [D, V], in the compute dtype."""
  kernel = params["embed"]["embedding"].T if config.tie_embeddings else params["head"]["kernel"]
  return kernel.astype(jnp.dtype(config.dtype))


def logits_of(config: DecoderConfig, params: Params, hidden: jax.Array) -> jax.Array:
  """Float32 logits [.., V] of normalised hidden states [.., D]."""
  return jnp.matmul(hidden, head_kernel(config, params), preferred_element_type=jnp.float32)


def forward(config: DecoderConfig, params: Params, tokens: Array, mask: Array):
  """Computes logits of whole sequences, without a cache.

  Args:
    config: the decoder.
    params: its parameters.
    tokens: [B, L] int.
    mask: [B, L] bool or int, non-zero on real tokens; padding on either side.

  Returns:
    [B, L, V] float32; rows of padding are finite and meaningless.
  """
  mask = jnp.asarray(mask, bool)
  row = Row(tokens.shape[1], 0, positions_of(mask), mask)
  hidden, _, _ = _trunk(config, params, tokens, row)
  return logits_of(config, params, hidden)


def prefill(config: DecoderConfig, params: Params, tokens: Array, mask: Array):
  """Encodes prompts once.

  Args:
    config: the decoder.
    params: its parameters.
    tokens: [P, S] int.
    mask: [P, S] bool, real tokens; padding on either side.

  Returns:
    The `PromptCache`, and the hidden state [P, D] that predicts the first completion token.
  """
  row = Row(tokens.shape[1], 0, positions_of(mask), mask)
  hidden, prompts, _ = _trunk(config, params, tokens, row, predicting=True)
  length = mask.sum(-1).astype(jnp.int32)
  return PromptCache(prompts, mask, length), hidden[:, 0]


def decode_step(
  config: DecoderConfig,
  params: Params,
  tokens: jax.Array,
  prompt: PromptCache,
  own: CompletionCache,
  step: jax.Array,
):
  """Feeds one token of every candidate.

  Args:
    config: the decoder.
    params: its parameters.
    tokens: [P, G] int, the tokens at completion position `step`.
    prompt: from `prefill`.
    own: the candidates' cache, of T slots.
    step: int32 scalar; its slot of `own` is written.

  Returns:
    The hidden states [P, G, D] that predict the tokens at `step + 1`, and the updated cache.
  """
  group = tokens.shape[1]
  positions = jnp.broadcast_to((prompt.length + step)[:, None], tokens.shape)
  seen = (jnp.arange(own[0].v.shape[3]) <= step)[None]
  row = Row(0, group, positions, prompt.mask, seen)
  hidden, _, own = _trunk(config, params, tokens, row, prompt.layers, own, step)
  return hidden, own


def completion_hidden(
  config: DecoderConfig,
  params: Params,
  prompt_tokens: Array,
  prompt_mask: Array,
  completion_tokens: Array,
  *,
  remat: Remat = "none",
) -> jax.Array:
  """Computes the hidden states that predict each completion token, the prompt encoded once.

  Args:
    config: the decoder.
    params: its parameters.
    prompt_tokens: [P, S] int.
    prompt_mask: [P, S] bool.
    completion_tokens: [P, G, T] int, padded on the right.
    remat: what of a layer is computed again in the backward pass instead of kept: `none`; `dots`,
      all but the products with weights; `layers`, all.

  Returns:
    [P, G, T, D]; entry t predicts `completion_tokens[..., t]` (entry 0 is the prompt's last
    hidden state, the same for the whole group).
  """
  prompts, group, length = completion_tokens.shape
  fed = completion_tokens[..., : length - 1].reshape(prompts, -1)  # nothing follows the last token
  start = prompt_mask.sum(-1).astype(jnp.int32)
  own_positions = jnp.tile(jnp.arange(length - 1), group) + start[:, None]
  row = Row(
    prompt_tokens.shape[1],
    group if length > 1 else 0,
    jnp.concatenate([positions_of(prompt_mask), own_positions], axis=1),
    prompt_mask,
    jnp.tril(jnp.ones((length - 1, length - 1), bool)),
  )
  tokens = jnp.concatenate([prompt_tokens, fed.astype(prompt_tokens.dtype)], axis=1)
  hidden, _, _ = _trunk(config, params, tokens, row, remat=remat, predicting=True)
  first = jnp.broadcast_to(hidden[:, None, :1], (prompts, group, 1, hidden.shape[-1]))
  rest = hidden[:, 1:].reshape(prompts, group, length - 1, hidden.shape[-1])
  return jnp.concatenate([first, rest], axis=2)


def _trunk(config, params, tokens, row, prompt=None, own=None, step=None, **how):
  module = Decoder(config)
  return module.apply({"params": params}, tokens, row, prompt, own, step, method="trunk", **how)
