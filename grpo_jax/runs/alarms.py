"""Checks of a run's metrics for known failures, each with what to try.

An alarm is a pure function of the metrics so far, so a resumed run raises the same ones. None of
them stops a run: they stand in metrics.jsonl (`alarms/<name>`), in the log and in the report.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

Line = Mapping[str, float | None]
RECENT = 5  # steps that are looked at together
BEFORE = 20  # steps of a run's own history that the recent ones are compared with
NO_ENTROPY = 0.02  # nats per token: the policy hardly samples any more
KL_LIMIT = 0.5  # nats per token: far above what a policy that still speaks well shows
MISMATCH = "sampling/sampling_logp_difference/mean"
MISMATCH_LIMIT = 0.05  # nats per token, mean: sampler and trainer are not the same policy
LENGTH_FACTOR = 2.0  # completions so many times longer than at the start,
LENGTH_CUT = 0.25  # and this share of them cut at the limit
REWARD_DEVIATIONS = 6.0  # a rise of so many standard deviations of its own history,
REWARD_RISE = 0.2  # and of so much at least, within a few steps
NEARLY_ALL = 0.95  # share of the wanted or meant calls that do not parse
CALL_RATE_GAP = 0.3  # between the share that calls and the share that should


@dataclass(frozen=True)
class Alarm:
  """One check.

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


# What is not there is NaN, which no comparison holds for.
def _first(lines: Sequence[Line], name: str) -> float:
  """The first finite value of a metric, or NaN."""
  return next(iter(_values(lines, name)), math.nan)


def _recent(lines: Sequence[Line], name: str) -> float:
  """The mean of the last few steps; NaN until there are that many."""
  found = _values(lines[-RECENT:], name)
  return fmean(found) if len(found) == RECENT else math.nan


def _entropy_collapse(lines: Sequence[Line]) -> bool:
  now = _recent(lines, "entropy")
  return now < NO_ENTROPY and now < _first(lines, "entropy") / 2


def _length_explosion(lines: Sequence[Line]) -> bool:
  lengths, cut = (_recent(lines, f"completions/{n}") for n in ("mean_length", "clipped_ratio"))
  start = _recent(lines[:RECENT], "completions/mean_length")
  return len(lines) >= 2 * RECENT and lengths > LENGTH_FACTOR * start and cut > LENGTH_CUT


def _reward_leap(lines: Sequence[Line]) -> bool:
  before = _values(lines[-RECENT - BEFORE : -RECENT], "reward")
  if len(before) < BEFORE:
    return False
  rise = _recent(lines, "reward") - fmean(before)
  return rise > REWARD_RISE and rise > REWARD_DEVIATIONS * pstdev(before)


def _call_rate(lines: Sequence[Line]) -> bool:
  made, wanted = _recent(lines, "calls/made"), _recent(lines, "calls/wanted")
  return abs(made - wanted) > CALL_RATE_GAP


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
    lambda lines: _first(lines[-1:], "kl") > KL_LIMIT,
  ),
  Alarm(
    "sampler_mismatch",
    f"sampler and trainer differ by more than {MISMATCH_LIMIT} nats per token",
    "use --dtype=float32, or fewer --inner_updates and --minibatches; with one update it is a bug",
    lambda lines: _first(lines[-1:], MISMATCH) > MISMATCH_LIMIT,
  ),
  Alarm(
    "no_variance",
    f"no group had two different rewards for {RECENT} steps: nothing is learned",
    "use easier or harder tasks, a reward with more tiers, a larger --group_size or --temperature",
    lambda lines: _recent(lines, "frac_reward_zero_std") >= 1.0,
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
    "never_parses",
    f"of the calls that were wanted or meant, over {NEARLY_ALL:.0%} did not parse for {RECENT} steps",
    "use --parse=auto, which takes other forms of a call; begin with a warm start "
    "(--technique=sft); or give hints of the form in the system message",
    lambda lines: _recent(lines, "calls/unparsed") > NEARLY_ALL,
  ),
  Alarm(
    "call_rate",
    f"the share of completions that call is over {CALL_RATE_GAP:g} away from the share of tasks "
    f"that want a call, for {RECENT} steps",
    "say in the system message when to call, to ask and to decline; begin with a warm start "
    "(--technique=sft); or change the mix of the tasks",
    _call_rate,
  ),
  Alarm(
    "skipped_update",
    "a loss or gradient was not finite, so the update was skipped",
    "look at bad_steps/; lower --learning_rate or --clip_norm, or use --dtype=float32",
    lambda lines: _first(lines[-1:], "skipped_updates") > 0,
  ),
)
