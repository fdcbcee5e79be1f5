"""Initial weights that already look back and copy, for small decoders trained from scratch.

Copying a word from the prompt is what a small transformer learns last, and almost all of a tool
call is copied. The circuit it has to find is known (induction heads, Olsson et al. 2022,
arXiv:2209.11895), so the warm start begins with a rough one and training does the rest:

* layer 0, key/value head 0: query head 0 looks one token back and query head 1 two tokens back,
  through RoPE and the q/k biases alone, and writes what it saw to directions of their own;
* layer 1: every query head looks for places whose previous token (or the one before that) is the
  current token, and adds what stands there to the residual stream, where the tied head reads it.

Nothing is frozen: these are starting values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.parameters import Params, init_params
from grpo_jax.models.rope import rope_frequencies

EMBED_STD = 0.05
POSITION_PAIRS = 6  # the fastest RoPE pairs tell neighbours apart
SLOWEST_TURN = 3e-3  # radians per token below which a pair still matches across a prompt


def init_induction_params(config: DecoderConfig, key: jax.Array) -> Params:
  """Draws float32 parameters with previous-token and induction heads in layers 0 and 1.

  Args:
    config: needs q/k biases, tied embeddings, at least 2 layers and 2 query heads a key/value head.
    key: a typed PRNG key.

  Raises:
    ValueError: the shape has no room for the structure.
  """
  repeat = config.num_heads // config.num_kv_heads
  if not (config.attention_bias and config.tie_embeddings and config.num_layers >= 2):
    raise ValueError("the induction start needs q/k biases, tied embeddings and 2 layers or more")
  if repeat < 2:
    raise ValueError("the induction start needs at least 2 query heads per key/value head")
  params = jax.tree.map(np.array, init_params(config, key))
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
  width, head = config.hidden_size, config.head_dim
  for projection in ("q", "k", "v", "gate", "up"):
    params["layers"][projection]["kernel"] *= width**-0.5 / 0.02
  for projection in ("o", "down"):  # quiet outputs: the embeddings stay readable
    kernel = params["layers"][projection]["kernel"]
    kernel *= 0.15 * EMBED_STD * kernel.shape[1] ** -0.5 / 0.02
  params["embed"]["embedding"] *= EMBED_STD / 0.02

  frequencies, _ = rope_frequencies(config)
  half = head // 2
  slow = [i for i in range(half) if frequencies[i] < SLOWEST_TURN]
  content = np.array(slow + [i + half for i in slow])  # head dims in which content can match
  if len(content) < 16:
    raise ValueError("the induction start needs slower rotary frequencies or wider heads")
  basis = np.linalg.qr(rng.normal(size=(width, 3 * len(content))))[0]
  read, seen_1, seen_2 = np.split(basis, 3, axis=1)  # [D, C] each, orthonormal

  # Views of the stack: what is written to them below is written to it.
  first, second = (jax.tree.map(lambda x, n=n: x[n], params["layers"]) for n in (0, 1))
  first["k"]["kernel"][:, :head] *= 0.1
  first["k"]["bias"][:head] = _position_bias(frequencies, 0)
  first["v"]["kernel"][:, : len(content)] = read
  for i, seen in enumerate((seen_1, seen_2)):  # i + 1 tokens back
    columns = slice(i * head, (i + 1) * head)
    first["q"]["kernel"][:, columns] *= 0.1
    first["q"]["bias"][columns] = _position_bias(frequencies, -(i + 1))
    first["o"]["kernel"][columns] *= 0.1
    first["o"]["kernel"][i * head : i * head + len(content)] = 0.1 * seen.T

  for kv in range(config.num_kv_heads):
    keys = np.zeros((width, head))
    keys[:, content] = 1.5 * (seen_1 if kv % 2 == 0 else 0.7 * (seen_1 + seen_2))
    second["k"]["kernel"][:, kv * head : (kv + 1) * head] = keys
    copied = np.linalg.qr(rng.normal(size=(width, head)))[0]
    second["v"]["kernel"][:, kv * head : (kv + 1) * head] = copied
    for i in range(kv * repeat, (kv + 1) * repeat):
      columns = slice(i * head, (i + 1) * head)
      queries = np.zeros((width, head))
      queries[:, content] = 1.5 * read
      second["q"]["kernel"][:, columns] = queries
      second["o"]["kernel"][columns] = 0.15 * copied.T / repeat
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def _position_bias(frequencies: np.ndarray, offset: int) -> np.ndarray:
  """A head-wide bias [H] whose rotary score against offset 0's peaks `offset` tokens away."""
  half = len(frequencies)
  turned = offset * frequencies
  bias = np.zeros(2 * half)
  size = 5.0
  bias[:POSITION_PAIRS] = size * np.cos(turned[:POSITION_PAIRS])
  bias[half : half + POSITION_PAIRS] = size * np.sin(turned[:POSITION_PAIRS])
  return bias
