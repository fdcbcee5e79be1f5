"""Log-probabilities and entropies of given tokens, without ever holding all the logits.

The `[.., T, V]` logits of a batch are the largest array of GRPO training (V is 152k for Qwen 2.5).
They are computed here a chunk of positions at a time; the backward pass computes them again, unless
one chunk holds all.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Remat, completion_hidden, output_embedding
from grpo_jax.models.parameters import Params
from grpo_jax.models.placement import gathered_once
from grpo_jax.models.xla_cpu import over_first, scores_of, sum_over_rows
from grpo_jax.types import Array

CHUNK_BYTES = 2**27


class TokenLogprobs(NamedTuple):
  """What the policy says about given tokens.

  Attributes:
    logp: [P, G, T] float32, log pi(token | everything before it), in nats.
    entropy: [P, G, T] float32, of the whole next-token distribution, in nats.
  """

  logp: jax.Array
  entropy: jax.Array


def completion_logprobs(
  config: DecoderConfig,
  params: Params,
  prompt_tokens: Array,
  prompt_mask: Array,
  completion_tokens: Array,
  *,
  temperature: float = 1.0,
  remat: Remat = "none",
  chunk: int | None = None,
) -> TokenLogprobs:
  """Scores completions given their prompts; differentiable; the prompt's forward is shared.

  Args:
    config: the decoder.
    params: its parameters.
    prompt_tokens: [P, S] int.
    prompt_mask: [P, S] bool, real tokens; padding on either side.
    completion_tokens: [P, G, T] int, padded on the right; entries of padding are meaningless.
    temperature: logits are divided by it; the policy that is scored is the one so sampled. A Python
      number, static under jit.
    remat: what is computed again in the backward pass; see `completion_hidden`.
    chunk: positions of [G * T] whose logits are alive at once; None bounds them by 128 MiB a
      device.

  Returns:
    `TokenLogprobs` of [P, G, T].
  """
  hidden = completion_hidden(
    config, params, prompt_tokens, prompt_mask, completion_tokens, remat=remat
  )
  prompts, group, length, width = hidden.shape
  scores = gathered_once(
    lambda rows, h, y: token_logprobs(h, rows, y, temperature=temperature, chunk=chunk),
    output_embedding(config, params),
    hidden.reshape(prompts, group * length, width),
    jnp.reshape(completion_tokens, (prompts, group * length)),
  )
  return TokenLogprobs(*(x.reshape(prompts, group, length) for x in scores))


def token_logprobs(
  hidden: jax.Array,
  vocabulary: jax.Array,
  targets: Array,
  *,
  temperature: float = 1.0,
  chunk: int | None = None,
) -> TokenLogprobs:
  """Computes log-softmax(hidden @ vocabulary.T / temperature)[targets] and the entropy, in chunks.

  Args:
    hidden: [B, M, D], compute dtype.
    vocabulary: [V, D], compute dtype: the output embedding.
    targets: [B, M] int.
    temperature: positive; a Python number.
    chunk: positions of M at a time; None takes as many as 128 MiB of float32 logits hold.

  Returns:
    `TokenLogprobs` of [B, M].
  """
  rows, length, width = hidden.shape
  if chunk is None:
    chunk = max(1, CHUNK_BYTES // (4 * rows * vocabulary.shape[0]))
  pieces = -(-length // min(chunk, length))
  chunk = -(-length // pieces)  # even pieces: at most one position of padding each
  pad = ((0, 0), (0, pieces * chunk - length))
  # Rows of a piece in one axis: see `xla_cpu`.
  split = lambda x, *end: (
    x.reshape(rows, pieces, chunk, *end).swapaxes(0, 1).reshape(pieces, rows * chunk, *end)
  )
  h, y = split(jnp.pad(hidden, (*pad, (0, 0))), width), split(jnp.pad(targets, pad))
  outputs = _token_scores(h, vocabulary, y, temperature)
  join = lambda x: x.reshape(pieces, rows, chunk).swapaxes(0, 1).reshape(rows, -1)[:, :length]
  return TokenLogprobs(*(join(x) for x in outputs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _token_scores(
  hidden: jax.Array, vocabulary: jax.Array, targets: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
  """Log-probs and entropies [C, N] float32 of hidden [C, N, D] and targets [C, N], C at a time.

  The gradient of a token's log-prob with respect to its logits is one-hot minus softmax, whatever
  is done with it later. So the forward pass already takes that through the head's transpose, while
  the logits are there, and the backward pass only scales the result.
  """
  scores = lambda piece: _scores(vocabulary, temperature, *piece)[:2]
  return over_first(lax.map, scores, (hidden, targets))


def _scores(vocabulary: jax.Array, temperature: float, h: jax.Array, y: jax.Array):
  """Of one piece: log-probs, entropies [N], and the softmax minus the one-hot target [N, V]."""
  logits = scores_of(h, vocabulary) / temperature
  frozen = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  logp = jnp.take_along_axis(frozen, y[:, None], axis=-1)[:, 0]
  chances = jnp.exp(frozen)
  hit = jnp.arange(logits.shape[-1]) == y[:, None]
  return logp, -jnp.sum(chances * frozen, axis=-1), (chances - hit).astype(h.dtype)


def _token_scores_forward(hidden, vocabulary, targets, temperature):
  kept = hidden.shape[0] == 1  # one piece: its [N, V] array is small enough to wait

  def piece(inputs):
    logp, entropy, excess = _scores(vocabulary, temperature, *inputs)
    slope = jnp.matmul(excess, vocabulary, preferred_element_type=jnp.float32)
    return logp, entropy, slope.astype(hidden.dtype), excess if kept else None

  logp, entropy, slope, excess = over_first(lax.map, piece, (hidden, targets))
  return (logp, entropy), (hidden, vocabulary, targets, slope, excess)


def _token_scores_backward(temperature, saved, cotangents):
  hidden, vocabulary, targets, slope, excess = saved
  # The entropy is a diagnostic and has no gradient.
  scale = -cotangents[0][..., None] / temperature
  scaled = (hidden * scale).astype(hidden.dtype)

  def weight_gradient(total, inputs):
    h, y, scaled, excess = inputs
    if excess is None:
      excess = _scores(vocabulary, temperature, h, y)[2]
    return total + sum_over_rows(scaled, excess), None

  pieces = (hidden, targets, scaled, excess)
  start = jnp.zeros_like(vocabulary, jnp.float32).T
  if hidden.shape[0] == 1:
    total, _ = weight_gradient(start, jax.tree.map(lambda x: x[0], pieces))
  else:
    total, _ = lax.scan(weight_gradient, start, pieces)
  # Rounded before it is transposed: see `sum_over_rows`.
  return (slope * scale).astype(hidden.dtype), total.astype(vocabulary.dtype).T, None


_token_scores.defvjp(_token_scores_forward, _token_scores_backward)
