"""Verifiable rewards for tool calling: pure Python, no jax, nothing raises on any completion."""

from grpo_jax.rewards.breakdown import ERRORS, RewardBreakdown, RewardWeights
from grpo_jax.rewards.parsed import PARSE_ERRORS, ParseResult
from grpo_jax.rewards.parser import PARSE_MODES, parse
from grpo_jax.rewards.tiers import TIERS, binary, graded, score, tiered

__all__ = [
  "ERRORS",
  "PARSE_ERRORS",
  "PARSE_MODES",
  "TIERS",
  "ParseResult",
  "RewardBreakdown",
  "RewardWeights",
  "binary",
  "graded",
  "parse",
  "score",
  "tiered",
]
