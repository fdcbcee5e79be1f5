"""Signs that a run goes wrong, read off its metrics, each with what to try.

An alarm is a pure function of the metrics so far, so a resumed run raises the same ones. None of
them stops a run: they stand in metrics.jsonl (`alarms/<name>`), in the log and in the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

Line = Mapping[str, float | None]
RECENT = 5  # steps that are looked at together
BEFORE = 20  # steps of a run's own history that the recent ones are compared with
NO_ENTROPY = 0.02  # nats per token: the policy hardly samples any more
KL_LIMIT = 0.5  # nats per token: far above what a policy that still speaks well shows
MISMATCH_LIMIT = 0.05  # nats per token, mean: sampler and trainer are not the same policy
LENGTH_FACTOR = 2.0  # completions so many times longer than at the start,
LENGTH_CUT = 0.25  # and this share of them cut at the limit
REWARD_DEVIATIONS = 6.0  # a rise of so many standard deviations of its own history,
REWARD_RISE = 0.2  # and of so much at least, within a few steps


@dataclass(frozen=True)
class Alarm:
  """One sign.

  Attributes:
    name: as in metrics.jsonl, behind `alarms/`.
    meaning: what was seen.
    advice: what to try.
    seen: whether the newest of the lines (never empty) raises it.
  """

  name: str
  meaning: str
  advice: str
  seen: Callable[[Sequence[Line]], bool]


def raised(lines: Sequence[Line]) -> dict[str, float]:
  """The alarms at the newest of `lines` as metrics: 1 or 0 under `alarms/<name>`.

  Args:
    lines: the metrics of steps 0 to now, in order; what was not finite may be NaN, None or missing.
  """
  return {f"alarms/{alarm.name}": float(alarm.seen(lines)) for alarm in ALARMS}


def _values(lines: Sequence[Line], name: str) -> list[float]:
  """The finite values of a metric."""
  found = [line.get(name) for line in lines]
  return [value for value in found if value is not None and math.isfinite(value)]


def _recent(lines: Sequence[Line], name: str) -> float | None:
  """The mean of the last few steps; None until there are that many."""
  found = _values(lines[-RECENT:], name)
  return fmean(found) if len(found) == RECENT else None


def _entropy_collapse(lines: Sequence[Line]) -> bool:
  now = _recent(lines, "entropy")
  return now is not None and now < NO_ENTROPY and now < _values(lines, "entropy")[0] / 2


def _kl_blow_up(lines: Sequence[Line]) -> bool:
  return any(value > KL_LIMIT for value in _values(lines[-1:], "kl"))


def _mismatch(lines: Sequence[Line]) -> bool:
  found = _values(lines[-1:], "sampling/sampling_logp_difference/mean")
  return any(value > MISMATCH_LIMIT for value in found)


def _no_variance(lines: Sequence[Line]) -> bool:
  now = _recent(lines, "frac_reward_zero_std")
  return now is not None and now >= 1.0


def _length_explosion(lines: Sequence[Line]) -> bool:
  lengths, cut = (_recent(lines, f"completions/{n}") for n in ("mean_length", "clipped_ratio"))
  if lengths is None or cut is None or len(lines) < 2 * RECENT:
    return False
  start = fmean(_values(lines[:RECENT], "completions/mean_length") or [math.inf])
  return lengths > LENGTH_FACTOR * start and cut > LENGTH_CUT


def _reward_leap(lines: Sequence[Line]) -> bool:
  now = _recent(lines, "reward")
  before = _values(lines[-RECENT - BEFORE : -RECENT], "reward")
  if now is None or len(before) < BEFORE:
    return False
  rise = now - fmean(before)
  return rise > REWARD_RISE and rise > REWARD_DEVIATIONS * pstdev(before)


def _skipped(lines: Sequence[Line]) -> bool:
  return any(_values(lines[-1:], "skipped_updates"))


ALARMS = (
  Alarm(
    "entropy_collapse",
    f"entropy stayed below {NO_ENTROPY} nats per token for {RECENT} steps",
    "lower --learning_rate, raise --temperature or --clip_high, or add --kl_weight",
    _entropy_collapse,
  ),
  Alarm(
    "kl_blow_up",
    f"the KL to the start is above {KL_LIMIT} nats per token",
    "lower --learning_rate or --clip_norm, or add --kl_weight; look at the completions",
    _kl_blow_up,
  ),
  Alarm(
    "sampler_mismatch",
    f"sampler and trainer differ by more than {MISMATCH_LIMIT} nats per token",
    "use --dtype=float32, or fewer --inner_updates and --minibatches; with one update it is a bug",
    _mismatch,
  ),
  Alarm(
    "no_variance",
    f"no group had two different rewards for {RECENT} steps: nothing is learned",
    "use easier or harder tasks, a reward with more tiers, a larger --group_size or --temperature",
    _no_variance,
  ),
  Alarm(
    "length_explosion",
    f"completions are {LENGTH_FACTOR:g} times as long as at the start and many are cut",
    "look at the completions; use --aggregation=sequence or a reward that does not pay for length",
    _length_explosion,
  ),
  Alarm(
    "reward_leap",
    f"the reward rose by more than {REWARD_DEVIATIONS:g} standard deviations of its own history",
    "read rollouts/ of the last steps: the policy may have found a hole in the reward",
    _reward_leap,
  ),
  Alarm(
    "skipped_update",
    "a loss or gradient was not finite, so the update was skipped",
    "look at bad_steps/; lower --learning_rate or --clip_norm, or use --dtype=float32",
    _skipped,
  ),
)
