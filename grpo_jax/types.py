"""Array records that pass between the parts of a GRPO step, and the shape legend.

P prompts · G group (candidates per prompt) · S prompt tokens · T completion tokens · B rows ·
L tokens in a row · V vocabulary · D model width · F mlp width · N layers · Q query heads ·
K key/value heads · H head width
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import struct

# On the device, or on the host on its way there and back.
Array = jax.Array | np.ndarray


@struct.dataclass
class Prompts:
  """A step's prompts, each standing for a whole group.

  Attributes:
    tokens: [P, S] int32.
    mask: [P, S] bool, real tokens; padding on either side.
    index: [P] int32, each prompt's place in the step's batch (or in the data set, when evaluating);
      the sampling key is folded by it, so a candidate does not depend on its neighbours.
  """

  tokens: Array
  mask: Array
  index: Array


@struct.dataclass
class Rollout:
  """G sampled completions for each prompt.

  Attributes:
    prompts: what was completed.
    tokens: [P, G, T] int32, `pad_id` after the end.
    completion_mask: [P, G, T] bool, real tokens, the stop token among them.
    loss_mask: [P, G, T] bool, the tokens that the policy sampled, which it is trained on.
    logp: [P, G, T] float32, log-probs under the policy at the sampling temperature, nothing
      filtered, in nats; 0 on padding. It is what the loss differentiates: were it the policy at
      temperature 1, the samples would be off-policy (their mean score is then not zero).
    sampled_logp: [P, G, T] float32, log-probs under the distribution that was sampled from.
  """

  prompts: Prompts
  tokens: Array
  completion_mask: Array
  loss_mask: Array
  logp: Array
  sampled_logp: Array


@struct.dataclass
class GRPOBatch:
  """Everything that one update needs.

  Attributes:
    rollout: the completions and their log-probs under pi_old.
    advantages: [P, G] float32, or [P, G, T].
    token_weights: [P, G, T] float32, how much each token's loss counts; see `losses.token_weights`.
    ref_logp: [P, G, T] float32 log-probs under the frozen reference, or None without a KL term.
  """

  rollout: Rollout
  advantages: Array
  token_weights: Array
  ref_logp: Array | None = None


@struct.dataclass
class TrainState:
  """What a step changes, plus the run's key; all of it is in a checkpoint.

  Attributes:
    params: the policy's parameters.
    opt_state: optax's.
    step: int32 scalar, steps done.
    key: the run's typed PRNG key; never split, only folded (by step, prompt, candidate, token).
  """

  params: Any
  opt_state: Any
  step: jax.Array
  key: jax.Array
