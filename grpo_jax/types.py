"""Array records that pass between the parts of a GRPO step, and the shape legend.

P prompts · G group (candidates per prompt) · S prompt tokens · T completion tokens · B rows ·
L tokens in a row · V vocabulary · D model width · F mlp width · N layers · Q query heads ·
K key/value heads · H head width
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

# On the device, or on the host on its way there and back.
Array = jax.Array | np.ndarray


class Prompts(NamedTuple):
  """A step's prompts, each standing for a whole group.

  Attributes:
    tokens: [P, S] int32.
    mask: [P, S] bool, real tokens; padding on either side.
    index: [P] int32, each prompt's place in the step's batch (or in the data set, when evaluating);
      the sampling key is folded by it, so a candidate does not depend on its neighbours.
  """

  tokens: Array
  mask: Array
  index: Array  # type: ignore[assignment]  # a tuple has a method of this name


class Rollout(NamedTuple):
  """G sampled completions for each prompt.

  Attributes:
    prompts: what was completed.
    tokens: [P, G, T] int32, `pad_id` after the end.
    mask: [P, G, T] bool, sampled tokens, the stop token among them.
    logp: [P, G, T] float32, log-probs under the policy at the sampling temperature, nothing
      filtered, in nats; 0 on padding. It is what the loss differentiates: were it the policy at
      temperature 1, the samples would be off-policy (their mean score is then not zero).
    sampled_logp: [P, G, T] float32, log-probs under the distribution that was sampled from.
  """

  prompts: Prompts
  tokens: Array
  mask: Array
  logp: Array
  sampled_logp: Array


class GRPOBatch(NamedTuple):
  """Everything that one update needs.

  Attributes:
    rollout: the completions and their log-probs under pi_old.
    advantages: [P, G] float32.
    ref_logp: [P, G, T] float32 log-probs under the frozen reference, or None without a KL term.
  """

  rollout: Rollout
  advantages: Array
  ref_logp: Array | None = None


class TrainState(NamedTuple):
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
