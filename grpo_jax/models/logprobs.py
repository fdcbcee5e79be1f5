"""Log-probabilities and entropies of given tokens, without ever holding all the logits.

The `[.., T, V]` logits of a batch are the largest array of GRPO training (V is 152k for Qwen 2.5).
They are computed here a chunk of positions at a time and rematerialised in the backward pass.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params, completion_hidden, head_kernel
from grpo_jax.placement import gathered_once
from grpo_jax.types import Array

CHUNK_BYTES = 2**26


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
  remat: bool = False,
  chunk: int | None = None,
) -> TokenLogprobs:
  """Scores completions given their prompts; differentiable; the prompt's forward is shared.

  Args:
    config: the decoder.
    params: its parameters.
    prompt_tokens: [P, S] int.
    prompt_mask: [P, S] bool, real tokens; padding on either side.
    completion_tokens: [P, G, T] int, padded on the right; entries of padding are meaningless.
    temperature: logits are divided by it; the policy that is scored is the one so sampled.
    remat: recompute each layer in the backward pass instead of keeping its activations.
    chunk: positions of [G * T] whose logits are alive at once; None bounds them by 64 MiB a
      device.

  Returns:
    `TokenLogprobs` of [P, G, T].
  """
  hidden = completion_hidden(
    config, params, prompt_tokens, prompt_mask, completion_tokens, remat=remat
  )
  prompts, group, length, width = hidden.shape
  scores = gathered_once(
    lambda kernel, h, y: token_logprobs(h, kernel, y, temperature=temperature, chunk=chunk),
    head_kernel(config, params),
    hidden.reshape(prompts, group * length, width),
    completion_tokens.reshape(prompts, group * length),
  )
  return TokenLogprobs(*(x.reshape(prompts, group, length) for x in scores))


def token_logprobs(
  hidden: jax.Array,
  kernel: jax.Array,
  targets: Array,
  *,
  temperature: float = 1.0,
  chunk: int | None = None,
) -> TokenLogprobs:
  """Computes log-softmax(hidden @ kernel / temperature)[targets] and the entropy, chunk by chunk.

  Args:
    hidden: [B, M, D], compute dtype.
    kernel: [D, V], compute dtype.
    targets: [B, M] int.
    temperature: positive.
    chunk: positions of M at a time; None takes as many as 64 MiB of float32 logits hold.

  Returns:
    `TokenLogprobs` of [B, M].
  """
  rows, length, _ = hidden.shape
  if chunk is None:
    chunk = max(1, CHUNK_BYTES // (4 * rows * kernel.shape[1]))
  pieces = -(-length // min(chunk, length))
  chunk = -(-length // pieces)  # even pieces: at most one position of padding each
  pad = ((0, 0), (0, pieces * chunk - length))

  @jax.checkpoint
  def piece(inputs):
    h, y = inputs
    logits = jnp.matmul(h, kernel, preferred_element_type=jnp.float32) / temperature
    total = jax.nn.logsumexp(logits, axis=-1)
    logp = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0] - total
    # The entropy is a diagnostic: keeping it out of the gradient halves the backward work here.
    frozen = lax.stop_gradient(logits - total[..., None])
    return logp, -jnp.sum(jnp.exp(frozen) * frozen, axis=-1)

  split = lambda x: x.reshape(rows, pieces, chunk, *x.shape[2:]).swapaxes(0, 1)
  inputs = (split(jnp.pad(hidden, (*pad, (0, 0)))), split(jnp.pad(targets, pad)))
  outputs = jax.tree.map(lambda x: x[None], piece(jax.tree.map(lambda x: x[0], inputs))) \
    if pieces == 1 else lax.map(piece, inputs)  # fmt: skip
  join = lambda x: x.swapaxes(0, 1).reshape(rows, pieces * chunk)[:, :length]
  return TokenLogprobs(*(join(x) for x in outputs))
