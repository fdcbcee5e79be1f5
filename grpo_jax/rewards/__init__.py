"""Verifiable rewards for tool calling: no jax, and nothing raises on any completion."""

from grpo_jax.rewards.batch import BuiltInReward, Reward
from grpo_jax.rewards.breakdown import ERRORS, RewardBreakdown, RewardWeights
from grpo_jax.rewards.call_accuracy import CallAccuracy
from grpo_jax.rewards.combine import CombinedReward
from grpo_jax.rewards.custom import CustomReward
from grpo_jax.rewards.judge import JudgeConfig, JudgeReward
from grpo_jax.rewards.load import RewardConfig, load_reward, reward_files
from grpo_jax.rewards.parsing.parsed import PARSE_ERRORS, ParseResult
from grpo_jax.rewards.parsing.parser import PARSE_MODES, parse
from grpo_jax.rewards.tiers import TIERS, score
