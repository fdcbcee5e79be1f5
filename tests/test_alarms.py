"""Each alarm goes up at what it is for, and at nothing else."""

from __future__ import annotations

import math

import pytest

from grpo_jax.runs.alarms import ALARMS, raised

CALM = {
  "entropy": 0.8, "kl": 0.01, "sampling/sampling_logp_difference/mean": 1e-6,
  "frac_reward_zero_std": 0.3, "completions/mean_length": 20.0, "completions/clipped_ratio": 0.0,
  "reward": 0.4, "skipped_updates": 0.0, "calls/wanted": 0.6, "calls/made": 0.5,
  "calls/unparsed": 0.2,
}  # fmt: skip


def calm(steps: int) -> list[dict[str, float]]:
  """Steps of a run that goes well: noise, and a reward that rises slowly."""
  wave = [math.sin(7.3 * step) for step in range(steps)]
  return [
    {name: value * (1 + 0.1 * wave[step]) for name, value in CALM.items()}
    | {"step": step, "reward": 0.3 + 0.002 * step + 0.03 * wave[step]}
    for step in range(steps)
  ]


def up(lines: list[dict[str, float]]) -> set[str]:
  return {name.removeprefix("alarms/") for name, value in raised(lines).items() if value}


def test_a_calm_run_raises_none():
  lines = calm(150)
  assert all(not up(lines[: step + 1]) for step in range(len(lines)))


@pytest.mark.parametrize(
  ("name", "changed", "steps"),
  [
    ("entropy_collapse", {"entropy": 0.01}, 5),
    ("kl_blow_up", {"kl": 0.6}, 1),
    ("sampler_mismatch", {"sampling/sampling_logp_difference/mean": 0.06}, 1),
    ("no_variance", {"frac_reward_zero_std": 1.0}, 5),
    ("length_explosion", {"completions/mean_length": 45.0, "completions/clipped_ratio": 0.5}, 5),
    ("reward_leap", {"reward": 0.95}, 5),
    ("never_parses", {"calls/unparsed": 0.97}, 5),
    ("call_rate", {"calls/made": 0.2}, 5),
    ("call_rate", {"calls/wanted": 0.1, "calls/made": 1.0}, 5),
    ("skipped_update", {"skipped_updates": 1.0, "loss": math.nan, "entropy": math.nan}, 1),
  ],
)
def test_an_alarm_goes_up_at_its_sign_only(name, changed, steps):
  lines = calm(40)
  for _ in range(steps):
    lines.append({**CALM, "step": len(lines), **changed})
  assert up(lines) == {name}
  if steps > 1:  # one odd step is none
    assert name not in up(lines[:41])


def test_the_list_is_complete():
  assert len({alarm.name for alarm in ALARMS}) == len(ALARMS) == 9
  assert all(alarm.meaning and alarm.advice for alarm in ALARMS)


def test_calls_within_what_noise_and_a_mix_of_tasks_allow_raise_nothing():
  lines = calm(40)
  for made in (0.35, 0.85) * 3:
    lines.append({**CALM, "step": len(lines), "calls/made": made, "calls/unparsed": 0.9})
    assert not up(lines)


def test_the_advice_for_calls_that_never_parse_names_what_helps():
  advice = {alarm.name: alarm.advice for alarm in ALARMS}["never_parses"]
  assert all(word in advice for word in ("--parse=auto", "--technique=sft", "hints"))


def test_missing_and_unfinite_metrics_raise_nothing():
  assert not up([{"step": 0}])
  assert not up([{"step": s, "entropy": None, "reward": None} for s in range(50)])
  assert not up([{"step": s, "entropy": math.nan, "reward": math.nan} for s in range(50)])
