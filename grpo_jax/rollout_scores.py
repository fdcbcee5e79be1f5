"""From sampled tokens to texts and rewards, on the host: each host scores its own share."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from grpo_jax import hosts
from grpo_jax.rewards import CombinedReward, Reward, RewardBreakdown
from grpo_jax.schema import ToolTask
from grpo_jax.types import Rollout


def score_rollout(
  drawn: Rollout, tasks: Sequence[ToolTask], reward: Reward, decode: Callable[[list[int]], str]
) -> tuple[list[str], list[RewardBreakdown], dict[str, float], str]:
  """Scores every completion of a step.

  Args:
    drawn: the completions as NumPy arrays, [P, G, T].
    tasks: P of them.
    reward: what scores.
    decode: from a completion's token ids to its text.

  Returns:
    P * G texts and breakdowns, group after group; as metrics how many could not be scored, by code;
    and what the first failure so far said, or the empty string. On every host those of all hosts.
  """
  group = drawn.tokens.shape[1]
  texts = [
    decode(tokens[mask].tolist())
    for rows in zip(drawn.tokens, drawn.completion_mask, strict=True)
    for tokens, mask in zip(*rows, strict=True)
  ]
  own = hosts.share(len(texts))
  before = Counter(reward.failures())
  # Normalisation looks at the whole batch, of which this host has a share.
  plain = reward.unnormalised() if isinstance(reward, CombinedReward) else reward
  found = plain.score_batch(texts[own], [task for task in tasks for _ in range(group)][own])
  failed = Counter(reward.failures()) - before
  codes = {code: failed[code] for code in reward.failures()}
  said = reward.first_traceback
  told = hosts.gather_text(json.dumps([[dataclasses.asdict(b) for b in found], codes, said]))
  if len(told) > 1:
    parts = [json.loads(text) for text in told]
    found = [_breakdown(values) for scored, _, _ in parts for values in scored]
    codes = {}
    for _, counts, _ in parts:
      codes = {code: codes.get(code, 0) + counts.get(code, 0) for code in codes | counts}
    said = next((text for _, _, text in parts if text), "")
  if isinstance(reward, CombinedReward):
    found = reward.standardised(found)
  metrics: dict[str, float] = {"rewards/failures": sum(codes.values())}
  metrics |= {f"rewards/failures/{code}": n for code, n in codes.items()}
  return texts, found, metrics, said


def reached_limit(drawn: Rollout, limit: int, stop_ids: Sequence[int]) -> np.ndarray:
  """[P, G] bool: completions, as NumPy arrays, that ended at `limit` without a stop token."""
  lengths = np.asarray(drawn.completion_mask).sum(-1)
  last = np.take_along_axis(np.asarray(drawn.tokens), (lengths - 1)[..., None], axis=-1)[..., 0]
  return (lengths >= limit) & ~np.isin(last, stop_ids)


def _breakdown(values: dict) -> RewardBreakdown:
  return RewardBreakdown(**{**values, "wrong_arguments": tuple(values["wrong_arguments"])})
