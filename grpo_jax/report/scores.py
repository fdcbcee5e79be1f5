"""Statistics of scored completions: means and bootstrap intervals, by behavior, tool and error."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from grpo_jax.rewards import RewardBreakdown
from grpo_jax.tasks.schema import BEHAVIORS, ToolTask

SHOWN = (*BEHAVIORS, "other")
# Random indices drawn at a time: bounds the memory of a bootstrap at some 60 MB.
MAX_DRAWS_AT_ONCE = 4_000_000


def summarize(
  tasks: Sequence[ToolTask],
  breakdowns: Sequence[Sequence[RewardBreakdown]],
  *,
  seed: int,
  resamples: int = 2000,
) -> dict[str, Any]:
  """Scores one split: the mean reward with its interval, and where the reward is lost.

  Intervals are percentile bootstraps over tasks: the samples of a task are averaged first, since
  they are not independent of each other.

  Args:
    tasks: the tasks of the split.
    breakdowns: for each task, the rewards of its samples; equally many for every task.
    seed: of the bootstrap.
    resamples: bootstrap resamples.

  Returns:
    A JSON-ready mapping: `n` tasks and `samples` per task; `reward_mean`, `reward_ci95`;
    `by_behavior` and `by_tool`, each name with `mean`, `ci95`, `n`; `confusion[wanted][shown]`,
    counts of completions; `error_rates`, the share of all completions by error code;
    `wrong_arguments[tool][argument]`, the share of that tool's execute completions.

  Raises:
    ValueError: no task, or not equally many samples for each.
  """
  samples = {len(group) for group in breakdowns}
  if not tasks or len(tasks) != len(breakdowns) or len(samples) != 1 or 0 in samples:
    raise ValueError(
      f"{len(tasks)} tasks with {sorted(samples)} samples of {len(breakdowns)} tasks; expected at "
      "least one task, and equally many samples (at least one) for each"
    )
  rewards = np.array([[found.total for found in group] for group in breakdowns], dtype=np.float64)
  task_means = rewards.mean(axis=1)
  behaviors = np.array([task.behavior for task in tasks])
  tools = np.array([task.tool_name for task in tasks])

  def mean_of(chosen: np.ndarray) -> dict[str, Any]:
    values = task_means[chosen]
    interval = interval95(bootstrap_means(values, seed, resamples))
    return {"mean": float(values.mean()), "ci95": interval, "n": len(values)}

  whole = mean_of(behaviors != "")
  errors = Counter(found.error for group in breakdowns for found in group if found.error)
  confusion = {wanted: dict.fromkeys(SHOWN, 0) for wanted in BEHAVIORS}
  for task, group in zip(tasks, breakdowns, strict=True):
    for found in group:
      confusion[task.behavior][found.shown] += 1
  return {
    "n": len(tasks),
    "samples": samples.pop(),
    "reward_mean": whole["mean"],
    "reward_ci95": whole["ci95"],
    "by_behavior": {name: mean_of(behaviors == name) for name in BEHAVIORS if name in behaviors},
    "by_tool": {name: mean_of(tools == name) for name in sorted(set(tools.tolist()) - {""})},
    "confusion": confusion,
    "error_rates": _shares(errors, rewards.size),
    "wrong_arguments": _wrong_argument_rates(tasks, breakdowns),
  }


def compare(
  base_rows: Sequence[Mapping[str, Any]],
  final_rows: Sequence[Mapping[str, Any]],
  *,
  seed: int,
  resamples: int = 2000,
) -> dict[str, Any]:
  """Compares two evaluations of the same tasks, task by task.

  Tasks are resampled in pairs, which is narrower than two separate intervals: a task that is hard
  for one policy is hard for the other. The relative gain is `final_mean / base_mean - 1`.

  Args:
    base_rows: the rows of `evaluate`, before.
    final_rows: the rows of `evaluate`, after; the number of samples a task may differ.
    seed: of the bootstrap.
    resamples: bootstrap resamples.

  Returns:
    A JSON-ready mapping: `n`, `base_mean`, `final_mean`, `difference`, `difference_ci95`,
    `relative_gain`, `relative_gain_ci95` (both None where a base mean is not positive), and
    `by_behavior` with the same for each wanted behavior.

  Raises:
    ValueError: the two evaluations are not of the same tasks.
  """
  wanted, base = _task_means(base_rows)
  final_wanted, final = _task_means(final_rows)
  if not wanted or wanted != final_wanted:
    raise ValueError("the two evaluations are not of the same tasks, in the same order")
  behaviors = np.array([behavior for _, behavior in wanted])
  return {
    **_paired(base, final, seed, resamples),
    "by_behavior": {
      behavior: _paired(base[behaviors == behavior], final[behaviors == behavior], seed, resamples)
      for behavior in BEHAVIORS
      if (behaviors == behavior).any()
    },
  }


def differing_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str] | None:
  """The names of the settings that two summaries of a split do not share.

  Args:
    before: what `summarize` returns, with `settings` where they were written down.
    after: the same, of the other evaluation.

  Returns:
    The names; None where one of the two does not say how it was made.
  """
  one, two = before.get("settings"), after.get("settings")
  if one is None or two is None:
    return None
  return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def stratified_mean(
  strata: Sequence[np.ndarray], weights: Sequence[float], seed: int, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
  """A weighted mean of the means of several strata, and its bootstrap: each resampled by itself.

  Args:
    strata: float [N] or [N, C] each; columns are resampled together.
    weights: one for each stratum; they need not sum to 1.
    seed: of the bootstrap.
    resamples: bootstrap resamples.

  Returns:
    The mean, [] or [C], and those of the resamples, [resamples] or [resamples, C].
  """
  shares = np.array(weights, np.float64) / sum(weights)
  # A seed for each: strata of one size would be resampled alike.
  resampled = [bootstrap_means(values, (seed, i), resamples) for i, values in enumerate(strata)]
  added = lambda means: sum(share * mean for share, mean in zip(shares, means, strict=True))
  return added([values.mean(axis=0) for values in strata]), added(resampled)


def bootstrap_means(values: np.ndarray, seed: int | Sequence[int], resamples: int) -> np.ndarray:
  """The means of `resamples` resamples with replacement.

  Args:
    values: float [N] or [N, C]; the columns are resampled together.
    seed: every call with the same N and seed draws the same resamples.
    resamples: how many.

  Returns:
    float64 [resamples] or [resamples, C].
  """
  rng = np.random.default_rng(seed)
  size = len(values)
  at_once = max(1, MAX_DRAWS_AT_ONCE // size)
  chunks = [
    values[rng.integers(0, size, (min(at_once, resamples - start), size))].mean(axis=1)
    for start in range(0, resamples, at_once)
  ]
  return np.concatenate(chunks)


def interval95(statistics: np.ndarray) -> list[float]:
  """The 2.5th and 97.5th percentile, as a JSON-ready pair."""
  low, high = np.percentile(statistics, (2.5, 97.5))
  return [float(low), float(high)]


def _wrong_argument_rates(
  tasks: Sequence[ToolTask], breakdowns: Sequence[Sequence[RewardBreakdown]]
) -> dict[str, dict[str, float]]:
  wrong: defaultdict[str, Counter[str]] = defaultdict(Counter)
  completions: Counter[str] = Counter()
  for task, group in zip(tasks, breakdowns, strict=True):
    if task.behavior == "execute":
      completions[task.tool_name] += len(group)
      for found in group:
        wrong[task.tool_name].update(found.wrong_arguments)
  return {tool: _shares(wrong[tool], completions[tool]) for tool in sorted(wrong) if wrong[tool]}


def _shares(counts: Counter[str], of: int) -> dict[str, float]:
  """Counts as shares, the largest first."""
  ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  return {name: count / of for name, count in ordered}


def _task_means(rows: Iterable[Mapping[str, Any]]) -> tuple[list[tuple[str, str]], np.ndarray]:
  """What identifies each task, and its mean reward, in the order of the tasks."""
  rewards: defaultdict[int, list[float]] = defaultdict(list)
  identity: dict[int, tuple[str, str]] = {}
  for row in rows:
    rewards[row["index"]].append(row["reward"])
    identity[row["index"]] = (row["id"] or row["request"], row["wanted"])
  order = sorted(rewards)
  means = np.array([np.mean(rewards[index]) for index in order])
  return [identity[index] for index in order], means


def _paired(base: np.ndarray, final: np.ndarray, seed: int, resamples: int) -> dict[str, Any]:
  means = bootstrap_means(np.stack([base, final], axis=1), seed, resamples)
  return {"n": len(base), **gain_of([base.mean(), final.mean()], means)}


def gain_of(mean: Sequence[float] | np.ndarray, means: np.ndarray) -> dict[str, Any]:
  """What changed from before to after, as `compare` says it, `n` aside.

  Args:
    mean: [2], before and after.
    means: [resamples, 2], those of resamples in pairs.
  """
  base_mean, final_mean = map(float, mean)
  gain, gain_ci95 = None, None
  if base_mean > 0 and (means[:, 0] > 0).all():
    gain = final_mean / base_mean - 1
    gain_ci95 = interval95(means[:, 1] / means[:, 0] - 1)
  return {
    "base_mean": base_mean,
    "final_mean": final_mean,
    "difference": final_mean - base_mean,
    "difference_ci95": interval95(means[:, 1] - means[:, 0]),
    "relative_gain": gain,
    "relative_gain_ci95": gain_ci95,
  }
