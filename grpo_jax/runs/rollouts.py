"""The completions of a step: scoring, metrics and the JSONL record."""

import contextlib
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.runs import hosts
from grpo_jax.files.atomic import write_text
from grpo_jax.losses import share_without_spread
from grpo_jax.rewards import CombinedReward, Reward, RewardBreakdown
from grpo_jax.tasks.schema import BEHAVIORS, ToolTask
from grpo_jax.types import Rollout


@dataclass(frozen=True)
class ScoredRollout:
  """A step's completions as text, with their reward breakdowns; the same on every host.

  Attributes:
    texts: P * G of them, group after group.
    breakdowns: likewise.
    rewards: [P, G] float32.
    failures: as metrics, how many could not be scored, by code.
    first_failure: what the first failure so far said, or the empty string.
  """

  texts: Sequence[str]
  breakdowns: Sequence[RewardBreakdown]
  rewards: np.ndarray
  failures: Mapping[str, float]
  first_failure: str


class Groups(NamedTuple):
  """Groups of candidates with what they were asked and what they are worth.

  Attributes:
    tasks: P of them.
    drawn: the completions as NumPy arrays, [P, G, T], uncut.
    scored: their texts and rewards.
  """

  tasks: Sequence[ToolTask]
  drawn: Rollout
  scored: ScoredRollout


class Resampled(NamedTuple):
  """What dynamic sampling did in a step.

  Attributes:
    rounds: [P] int, the round that sampled each group, 0 the step's own.
    metrics: of all groups that were sampled, those among them that were discarded.
  """

  rounds: np.ndarray
  metrics: Mapping[str, float]

  def of_group(self, place: int) -> dict[str, int]:
    """The record of one group: its round, and how many groups the whole step discarded."""
    discarded = int(self.metrics["dynamic/discarded"])
    return {"round": int(self.rounds[place]), "discarded": discarded}


@dataclass
class StepRecord:
  """What is logged and recorded of a training step; filled in while it runs.

  Attributes:
    step: its number, from 0.
    tasks: P of them, those that were trained on.
    drawn: the completions as NumPy arrays, [P, G, T], uncut.
    scored: their texts and rewards.
    resampled: how dynamic sampling came to them; None without it.
    seconds: by phase: `sample`, `reward` and `update`.
    advantages: [P, G] float32.
    metrics: of the update and the completions.
    shape: S and T that the step's programs were compiled for.
  """

  step: int
  tasks: Sequence[ToolTask] = field(init=False)
  drawn: Rollout = field(init=False)
  scored: ScoredRollout = field(init=False)
  resampled: Resampled | None = None
  seconds: dict[str, float] = field(default_factory=dict)
  advantages: np.ndarray = field(init=False)
  metrics: dict[str, float] = field(default_factory=dict)
  shape: tuple[int, int] = (0, 0)

  @contextlib.contextmanager
  def timed(self, phase: str) -> Iterator[None]:
    """Adds what passes meanwhile to the seconds of a phase."""
    began = time.perf_counter()
    yield
    self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began


def score_rollout(
  drawn: Rollout, tasks: Sequence[ToolTask], reward: Reward, decode: Callable[[list[int]], str]
) -> ScoredRollout:
  """Scores every completion of a step, each host its share.

  Args:
    drawn: the completions as NumPy arrays, [P, G, T].
    tasks: P of them.
    reward: what scores.
    decode: from a completion's token ids to its text.
  """
  prompts, group, _ = drawn.tokens.shape
  texts = [
    decode(tokens[mask].tolist())
    for rows in zip(drawn.tokens, drawn.completion_mask, strict=True)
    for tokens, mask in zip(*rows, strict=True)
  ]
  own = hosts.share(len(texts))
  before = Counter(reward.failures())
  # Normalization looks at the whole batch, of which this host has a share.
  plain = reward.unnormalised() if isinstance(reward, CombinedReward) else reward
  found = plain.score_batch(texts[own], [task for task in tasks for _ in range(group)][own])
  failed = {code: count - before[code] for code, count in reward.failures().items()}
  ours = [dataclasses.asdict(breakdown) for breakdown in found], failed, reward.first_traceback
  told = [json.loads(text) for text in hosts.gather_text(json.dumps(ours))]
  found = [_breakdown(values) for scored, _, _ in told for values in scored]
  if isinstance(reward, CombinedReward):
    found = reward.standardised(found)
  failures = Counter({"rewards/failures": 0})
  for code, count in ((code, n) for _, counts, _ in told for code, n in counts.items()):
    failures["rewards/failures"] += count
    failures[f"rewards/failures/{code}"] += count
  first = next((said for _, _, said in told if said), "")
  totals = np.asarray([breakdown.total for breakdown in found], np.float32)
  return ScoredRollout(texts, found, totals.reshape(prompts, group), failures, first)


def rollout_metrics(record: StepRecord, limit: int, stop_ids: Sequence[int]) -> dict[str, float]:
  """Rewards and lengths of a step under the names that the field knows them by.

  Args:
    record: with completions and rewards.
    limit: the most tokens of a completion.
    stop_ids: tokens that end one.
  """
  rewards, breakdowns = record.scored.rewards, record.scored.breakdowns
  lengths = np.asarray(record.drawn.completion_mask).sum(-1)
  metrics = {
    "reward": float(rewards.mean()),
    "completions/mean_length": float(lengths.mean()),
    "completions/min_length": float(lengths.min()),
    "completions/max_length": float(lengths.max()),
    "completions/clipped_ratio": float(reached_limit(record.drawn, limit, stop_ids).mean()),
    "tokens": int(lengths.sum()),
  }
  if rewards.shape[1] > 1:  # one demonstration has no spread to speak of
    metrics["reward_std"] = float(rewards.std(axis=1).mean())
    metrics["frac_reward_zero_std"] = float(share_without_spread(rewards))
  parts = sorted({name for found in breakdowns for name in found.parts})
  for name in parts:
    values = np.asarray([found.parts[name] for found in breakdowns if name in found.parts])
    metrics[f"rewards/{name}/mean"] = float(values.mean())
    metrics[f"rewards/{name}/std"] = float(values.std())
  shown = [found.shown for found in breakdowns]
  for behavior in BEHAVIORS:
    metrics[f"shown/{behavior}"] = shown.count(behavior) / len(shown)
  resampled = record.resampled.metrics if record.resampled else {}
  return {**metrics, **_call_shares(record), **record.scored.failures, **resampled}


def _call_shares(record: StepRecord) -> dict[str, float]:
  """How many of a step's completions should call, do call, and fail at it.

  Returns:
    `calls/wanted`, the share of the completions whose task wants calls; `calls/made`, the share that
    calls, or means to; and, where there are such, `calls/unparsed`, the share of these two together
    that holds no call which parses.
  """
  breakdowns, group = record.scored.breakdowns, record.scored.rewards.shape[1]
  wanted = [task.behavior == "execute" for task in record.tasks for _ in range(group)]
  parsed = [found.shown == "execute" for found in breakdowns]
  made = [found.shown == "execute" or found.error == "unparsable" for found in breakdowns]
  shares = {"calls/wanted": fmean(wanted), "calls/made": fmean(made)}
  tried = [calls for calls, *any_of in zip(parsed, wanted, made, strict=True) if any(any_of)]
  return shares | ({"calls/unparsed": 1 - fmean(tried)} if tried else {})


def reached_limit(drawn: Rollout, limit: int, stop_ids: Sequence[int]) -> np.ndarray:
  """[P, G] bool: completions, as NumPy arrays, that ended at `limit` without a stop token."""
  lengths = np.asarray(drawn.completion_mask).sum(-1)
  last = np.take_along_axis(np.asarray(drawn.tokens), (lengths - 1)[..., None], axis=-1)[..., 0]
  return (lengths >= limit) & ~np.isin(last, stop_ids)


def rollout_rows(record: StepRecord) -> list[dict[str, Any]]:
  """The record of a step's completions, one JSON object a prompt."""
  scored, group = record.scored, record.scored.rewards.shape[1]
  rows = []
  for p, task in enumerate(record.tasks):
    own = slice(p * group, (p + 1) * group)
    found = scored.breakdowns[own]
    rows.append(
      {
        "step": record.step,
        "id": task.id,
        "wanted": task.behavior,
        "request": task.request,
        "answer": task.answer,
        "completions": list(scored.texts[own]),
        "rewards": scored.rewards[p].round(6).tolist(),
        "parts": [dict(b.parts) for b in found],
        "errors": [b.error for b in found],
        "advantages": record.advantages[p].round(6).tolist(),
        **(record.resampled.of_group(p) if record.resampled else {}),
      }
    )
  return rows


def write_rollouts(run_dir: Path, record: StepRecord) -> None:
  """Writes `rollouts/step_<step>.jsonl`, one line a prompt: replaced at once or not at all."""
  path = rollouts_path(run_dir, record.step)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rollout_rows(record)]
  write_text(path, "".join(lines))


def rollouts_path(run_dir: Path, step: int) -> Path:
  """Where the completions of a step are recorded."""
  return run_dir / "rollouts" / f"step_{step:06d}.jsonl"


def write_bad_step(run_dir: Path, record: StepRecord) -> Path:
  """Keeps the batch of a skipped update for inspection: `bad_steps/step_<step>.npz`.

  It holds `prompt_tokens` [P, S], `prompt_mask` [P, S], `tokens`, `completion_mask`, `loss_mask`,
  `logp` and `sampled_logp` [P, G, T], and `rewards` [P, G].
  """
  rollout = record.drawn
  path = run_dir / "bad_steps" / f"step_{record.step:06d}.npz"
  path.parent.mkdir(exist_ok=True)
  names = ("tokens", "completion_mask", "loss_mask", "logp", "sampled_logp")
  np.savez(
    path,
    prompt_tokens=rollout.prompts.tokens,
    prompt_mask=rollout.prompts.mask,
    rewards=record.scored.rewards,
    **{name: getattr(rollout, name) for name in names},
  )
  return path


def _breakdown(values: dict) -> RewardBreakdown:
  return RewardBreakdown(**{**values, "wrong_arguments": tuple(values["wrong_arguments"])})
