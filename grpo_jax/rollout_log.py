"""What a step's completions were: their metrics, and the record of them in the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grpo_jax.config import GRPOConfig
from grpo_jax.losses import group_advantages, share_without_spread
from grpo_jax.rewards import RewardBreakdown
from grpo_jax.run_folder import write_text
from grpo_jax.schema import BEHAVIORS, ToolTask
from grpo_jax.types import Rollout


def rollout_metrics(
  mask: np.ndarray,
  rewards: np.ndarray,
  breakdowns: Sequence[RewardBreakdown],
  cut: np.ndarray,
) -> dict[str, float]:
  """Rewards and lengths of a step under the names that the field knows them by.

  Args:
    mask: [P, G, T] bool, sampled tokens.
    rewards: [P, G] float32.
    breakdowns: P * G of them, group after group.
    cut: [P, G] bool, completions that reached the limit.
  """
  lengths = mask.sum(-1)
  metrics = {
    "reward": float(rewards.mean()),
    "reward_std": float(rewards.std(axis=1).mean()),
    "frac_reward_zero_std": float(share_without_spread(rewards)),
    "completions/mean_length": float(lengths.mean()),
    "completions/min_length": float(lengths.min()),
    "completions/max_length": float(lengths.max()),
    "completions/clipped_ratio": float(cut.mean()),
    "tokens": int(lengths.sum()),
  }
  parts = sorted({name for found in breakdowns for name in found.parts})
  for name in parts:
    values = np.asarray([found.parts[name] for found in breakdowns if name in found.parts])
    metrics[f"rewards/{name}/mean"] = float(values.mean())
    metrics[f"rewards/{name}/std"] = float(values.std())
  shown = [found.shown for found in breakdowns]
  for behavior in BEHAVIORS:
    metrics[f"shown/{behavior}"] = shown.count(behavior) / len(shown)
  return metrics


def write_rollouts(
  run_dir: Path,
  step: int,
  tasks: Sequence[ToolTask],
  texts: Sequence[str],
  breakdowns: Sequence[RewardBreakdown],
  rewards: np.ndarray,
  settings: GRPOConfig,
) -> None:
  """Writes `rollouts/step_<step>.jsonl`, one line a prompt: replaced at once or not at all."""
  folder = run_dir / "rollouts"
  folder.mkdir(parents=True, exist_ok=True)
  advantages = np.asarray(
    group_advantages(rewards, scale=settings.advantage, epsilon=settings.advantage_epsilon)
  )
  group = rewards.shape[1]
  lines = []
  for p, task in enumerate(tasks):
    found = breakdowns[p * group : (p + 1) * group]
    line = {
      "step": step,
      "id": task.id,
      "wanted": task.behavior,
      "request": task.request,
      "answer": task.answer,
      "completions": list(texts[p * group : (p + 1) * group]),
      "rewards": rewards[p].round(6).tolist(),
      "parts": [dict(b.parts) for b in found],
      "errors": [b.error for b in found],
      "advantages": advantages[p].round(6).tolist(),
    }
    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  write_text(folder / f"step_{step:06d}.jsonl", "".join(lines))


def write_bad_step(run_dir: Path, step: int, rollout: Rollout, rewards: np.ndarray) -> Path:
  """Keeps the batch of a skipped update for inspection: `bad_steps/step_<step>.npz`.

  It holds `prompt_tokens` [P, S], `prompt_mask` [P, S], `tokens`, `completion_mask`,
  `loss_mask`, `logp` and `sampled_logp` [P, G, T], and `rewards` [P, G].
  """
  folder = run_dir / "bad_steps"
  folder.mkdir(exist_ok=True)
  path = folder / f"step_{step:06d}.npz"
  np.savez(
    path,
    prompt_tokens=rollout.prompts.tokens,
    prompt_mask=rollout.prompts.mask,
    tokens=rollout.tokens,
    completion_mask=rollout.completion_mask,
    loss_mask=rollout.loss_mask,
    logp=rollout.logp,
    sampled_logp=rollout.sampled_logp,
    rewards=rewards,
  )
  return path
