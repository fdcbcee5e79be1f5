"""Does a recorded step come out again? From the nearest checkpoint; nothing is written."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grpo_jax import __version__
from grpo_jax.config import changed_settings, config_of
from grpo_jax.rewards import load_reward
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.runs.folder import whole_lines
from grpo_jax.runs.rollouts import rollout_rows, rollouts_path
from grpo_jax.train import read_data, set_up, take_step

# What is compared of each prompt's record in rollouts/.
PARTS: Mapping[str, tuple[str, ...]] = {
  "batch": ("id", "wanted", "request", "answer"),
  "completions": ("completions",),
  "rewards": ("rewards", "parts", "errors"),
  "advantages": ("advantages",),
}
TIMES = ("seconds/", "step_time", "tokens_per_second", "dynamic/useful_groups_per_second")
# Not the step's own: they depend on the steps before it, or on an evaluation after it.
BESIDE = ("alarms/", "eval/", "num_tokens")
ACROSS_VERSIONS = 1e-3


@dataclass(frozen=True)
class Replay:
  """What came of it.

  Attributes:
    step: the step that was done again.
    start: the step of the checkpoint that it was reached from; 0 is the model itself.
    equal: for each part (`batch`, `completions`, `rewards`, `advantages`, `update`, and
      `parameters` where there is a checkpoint right after the step) whether it equals the record.
    notes: what differs, and settings that have changed since.
    recorded_by: the version that recorded the step, where it is another than this one.
    difference: the largest difference of a metric, relative to it where it is above 1.
  """

  step: int
  start: int
  equal: Mapping[str, bool]
  notes: tuple[str, ...]
  recorded_by: str = ""
  difference: float = 0.0


def replay(run_dir: Path | str, step: int) -> Replay:
  """Does one step of a run again and compares it with what was recorded, bit for bit.

  What another version recorded has sums in other orders: its numbers count as equal within
  `ACROSS_VERSIONS`, its completions and rewards still to the letter.

  Args:
    run_dir: the run folder; only read.
    step: its number, from 0.

  Raises:
    ValueError: the folder holds no record of that step, or is not a run folder.
  """
  run_dir = Path(run_dir)
  if not (run_dir / "config.json").is_file():
    raise ValueError(f"{run_dir} is not a run folder: it has no config.json")
  record = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
  lines = whole_lines(run_dir / "metrics.jsonl")
  recorded = rollouts_path(run_dir, step)
  if not 0 <= step < len(lines) or not recorded.is_file():
    raise ValueError(f"{run_dir} has no record of step {step}; it has {len(lines)} steps from 0 on")
  config = config_of(record)
  with (
    load_reward(config.reward, config.reward_config) as reward,
    Checkpoints(run_dir, read_only=True) as checkpoints,
  ):
    data = read_data(dataclasses.replace(config, eval_data=()))
    setup, state = set_up(data)
    good = [found for found in checkpoints.steps() if not checkpoints.problem(found)]
    start = max((found for found in good if found <= step), default=0)
    if start:
      state, _ = checkpoints.restore(start, state)
    for number in range(start, step + 1):
      state, again = take_step(setup, state, number, reward)
    version = minor(record.get("version", "0.1"))
    other = version if version != minor(__version__) else ""
    allowed = ACROSS_VERSIONS if other else 0.0
    rows = json.loads(json.dumps(rollout_rows(again)))
    equal, notes = _compare(_rows(recorded), rows, allowed)
    differing, difference = _differing(lines[step][1], again.metrics)
    equal["update"] = difference <= allowed
    notes += [] if equal["update"] else differing
    if step + 1 in good:
      wanted, _ = checkpoints.restore(step + 1, state)
      pairs = zip(jax.tree.leaves(wanted.params), jax.tree.leaves(state.params), strict=True)
      equal["parameters"] = all(np.allclose(a, b, rtol=allowed, atol=allowed) for a, b in pairs)
    notes += [
      f"changed since: {change}"
      for change in changed_settings(record, data.record)
      if not change.startswith(("eval_data", "data_sha256"))
      or record["data_sha256"]["train"] != data.record["data_sha256"]["train"]
    ]
  return Replay(step, start, equal, tuple(notes), other, difference)


def minor(version: str) -> str:
  """The first two numbers of a version: what changes none of them keeps every bit."""
  return ".".join(version.split(".")[:2])


def _rows(path: Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _compare(
  recorded: list[dict[str, Any]], again: list[dict[str, Any]], allowed: float
) -> tuple[dict[str, bool], list[str]]:
  """Which parts are equal, and where not; advantages up to the difference that is allowed."""
  equal, notes = {}, []
  for part, names in PARTS.items():
    pick = lambda row, names=names: [row.get(name) for name in names]
    pairs = [(pick(a), pick(b)) for a, b in zip(recorded, again, strict=False)]
    near = allowed and part == "advantages"
    same = [a == b or (near and np.allclose(a, b, rtol=0, atol=allowed)) for a, b in pairs]
    equal[part] = all(same) and len(recorded) == len(again)
    if not equal[part]:
      notes.append(f"{part} differ at {same.count(False)} of {len(recorded)} prompts")
  return equal, notes


def _differing(
  recorded: Mapping[str, float | None], again: Mapping[str, float]
) -> tuple[list[str], float]:
  """The metrics that differ, in words, and by how much at most; times are nobody's fault."""
  ours = {k: v if np.isfinite(v) else None for k, v in again.items() if k != "tokens"}
  words, largest = [], 0.0
  for name, then in recorded.items():
    now = ours.get(name)
    if name == "step" or name.startswith((*TIMES, *BESIDE)) or then == now:
      continue
    words.append(f"{name} ({then} then, {now} now)")
    gap = np.inf if then is None or now is None else abs(now - then) / max(1.0, abs(then))
    largest = max(largest, float(gap))
  return words, largest
