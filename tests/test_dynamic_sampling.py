"""Groups without spread are replaced: which, by what, how often, and all of it again."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from small_run import command

from grpo_jax.config import RunConfig
from grpo_jax.losses import has_spread
from grpo_jax.replay import replay
from grpo_jax.rewards import RewardBreakdown, RewardConfig
from grpo_jax.runs.rollouts import Groups, ScoredRollout
from grpo_jax.runs.trackers import read_metrics
from grpo_jax.sampling import replace_idle
from grpo_jax.tasks.batches import batch_at, fresh_order
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.train import train
from grpo_jax.types import Prompts, Rollout

P, G, T = 4, 2, 3
# Two of seven completions are worth something: of three candidates, a third or so are all alike.
REWARD = "def rare(completion, task):\n  return float(sum(map(ord, completion)) % 7 > 4)\n"


def groups_of(numbers, rewards, first=0, length=5) -> Groups:
  """Groups of tasks that say their number everywhere, with these rewards."""
  tasks = [ToolTask(({"role": "user", "content": str(n)},), "refuse") for n in numbers]
  numbers = np.asarray(numbers, np.int32)
  table = np.broadcast_to(numbers[:, None, None], (len(numbers), G, T)).copy()
  mask = np.ones(table.shape, bool)
  prompts = Prompts(
    np.broadcast_to(numbers[:, None], (len(numbers), length)).copy(),
    np.ones((len(numbers), length), bool),
    first + np.arange(len(numbers), dtype=np.int32),
  )
  logp = table.astype(np.float32)
  texts = [f"{n}/{g}" for n in numbers for g in range(G)]
  rewards = np.asarray(rewards, np.float32)
  found = [RewardBreakdown(float(r)) for r in rewards.ravel()]
  scored = ScoredRollout(texts, found, rewards, {"rewards/failures": 1}, "")
  return Groups(tasks, Rollout(prompts, table, mask, mask, logp, logp), scored)


def replaced(useful, own, fresh, **options):
  """What comes of groups that have a spread where `useful` holds their task, and what was drawn."""
  rewards = lambda numbers: [(0, 1) if n in useful else (1, 1) for n in numbers]
  drawn = []

  def draw(numbers, first):
    drawn.append((list(numbers), first))
    return groups_of(numbers, rewards(numbers), first, length=8)

  groups, said = replace_idle(groups_of(own, rewards(own)), fresh, draw, **options)
  return groups, said, drawn


def test_idle_groups_are_replaced_until_the_batch_is_full():
  groups, said, drawn = replaced(
    {1, 10, 13, 14}, [0, 1, 2, 3], [10, 11, 12, 13, 14, 15, 16], rounds=5
  )
  # Three are idle: four are drawn. The first has a spread, the fourth too, so one is left to fill.
  assert drawn == [([10, 11, 12, 13], 4), ([14], 8)]
  assert [task.request for task in groups.tasks] == ["10", "1", "13", "14"]
  assert list(said.rounds) == [1, 0, 1, 2]
  assert groups.drawn.tokens[:, 0, 0].tolist() == [10, 1, 13, 14]
  assert groups.drawn.prompts.index.tolist() == [4, 1, 7, 8]  # no two of a step draw alike
  assert groups.drawn.prompts.mask.sum(1).tolist() == [8, 5, 8, 8]
  assert not groups.drawn.prompts.mask[1, :3].any()
  assert list(groups.scored.texts) == ["10/0", "10/1", "1/0", "1/1", "13/0", "13/1", "14/0", "14/1"]
  assert [found.total for found in groups.scored.breakdowns] == [0, 1] * 4
  assert groups.scored.failures == {"rewards/failures": 3}  # of all that was scored
  assert said.metrics == {
    "dynamic/rounds": 2, "dynamic/discarded": 5, "dynamic/without_spread": 5,
    "dynamic/reward": pytest.approx((4 * 0.5 + 5) / 9), "tokens": 9 * G * T,
  }  # fmt: skip
  assert said.of_group(3) == {"round": 2, "discarded": 5}


def test_what_is_idle_after_the_last_round_stays():
  groups, said, drawn = replaced({11}, [0, 1, 2, 3], range(10, 30), rounds=1)
  assert drawn == [([10, 11, 12, 13], 4)]
  assert [task.request for task in groups.tasks] == ["11", "1", "2", "3"]
  assert said.metrics["dynamic/without_spread"] == 7
  # Nothing is idle, or nothing is left: nothing is drawn.
  assert replaced({0, 1, 2, 3}, [0, 1, 2, 3], [10], rounds=3)[2] == []
  groups, said, drawn = replaced({10}, [0, 1, 2, 3], [10], rounds=3)
  assert drawn == [([10], 4)] and list(said.rounds) == [1, 0, 0, 0]


def test_a_round_has_a_size_that_the_mesh_divides():
  own, fresh = [0, 1, 2, 3], range(10, 20)
  assert replaced({0, 1, 2, 10}, own, fresh, rounds=1, parts=2)[2] == [([10, 11], 4)]
  assert replaced({0, 1, 2, 10}, own, fresh, rounds=1, parts=4)[2] == [([10, 11, 12, 13], 4)]
  assert replaced({0, 1, 2}, own, range(10, 13), rounds=1, parts=4)[2] == []  # too few are left


def test_fresh_tasks_are_a_step_s_own_order_of_the_others():
  own = batch_at(3, num_tasks=20, prompts_per_step=4, seed=1)
  order = fresh_order(3, num_tasks=20, seed=1, without=own)
  assert sorted([*order, *own]) == list(range(20))
  assert order == fresh_order(3, num_tasks=20, seed=1, without=own)
  assert order != fresh_order(4, num_tasks=20, seed=1, without=own)
  assert order != fresh_order(3, num_tasks=20, seed=2, without=own)


def test_settings_that_do_not_go_together_are_refused():
  grpo = RunConfig(run_dir="x").grpo
  for wrong in (-1, 17):
    with pytest.raises(ValueError, match=f"--dynamic_rounds={wrong} must be at least 0 and at"):
      dataclasses.replace(grpo, dynamic_rounds=wrong)
  some = dataclasses.replace(grpo, dynamic_rounds=2)
  with pytest.raises(ValueError, match="--dynamic_rounds does not go with --normalise=batch"):
    RunConfig(run_dir="x", grpo=some, reward_config=RewardConfig(normalise="batch"))
  with pytest.raises(ValueError, match="--dynamic_rounds=2 is about samples"):
    dataclasses.replace(some, technique="sft")


@pytest.fixture(scope="module")
def sparse(settings, tmp_path_factory):
  """The small run with twelve tasks, and a reward that leaves many groups without spread."""
  folder = tmp_path_factory.mktemp("sparse")
  (folder / "reward.py").write_text(REWARD)
  with open(settings.data, encoding="utf-8") as file:
    row = json.loads(file.readline())
  rows = []
  for number in range(12):
    row["prompt"][1]["content"] = f"What time is it in Rome, number {number}?"
    rows.append(json.dumps(row | {"extra_info": {"id": f"task-{number}"}}) + "\n")
  (folder / "train.jsonl").write_text("".join(rows))
  return dataclasses.replace(
    settings,
    run_dir=str(folder / "run"),
    data=str(folder / "train.jsonl"),
    reward=f"{folder / 'reward.py'}:rare",
    grpo=dataclasses.replace(settings.grpo, dynamic_rounds=3),
    prompts_per_step=4,
  )


@pytest.fixture(scope="module")
def resampled(sparse):
  return train(sparse)


def rows_of(folder, step):
  file = folder / "rollouts" / f"step_{step:06d}.jsonl"
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_trains_on_what_has_a_spread(sparse, resampled, tmp_path):
  lines = read_metrics(resampled / "metrics.jsonl")
  assert sum(line["dynamic/discarded"] for line in lines) > 0
  for line in lines:
    rows = rows_of(resampled, line["step"])
    useful = np.asarray(has_spread(np.array([row["rewards"] for row in rows])))
    assert line["frac_reward_zero_std"] == pytest.approx(1 - useful.mean())
    assert useful.all() or line["dynamic/rounds"] == 3 or line["dynamic/discarded"] >= 4
    assert len({row["id"] for row in rows}) == 4  # a task stands only once in a step
    assert {row["discarded"] for row in rows} == {line["dynamic/discarded"]}
    assert all(useful[p] for p, row in enumerate(rows) if row["round"])
    assert line["dynamic/useful_groups_per_second"] * line["step_time"] == pytest.approx(
      useful.sum()
    )
  # What needs no replacement is what a run without it has.
  plain = dataclasses.replace(sparse.grpo, dynamic_rounds=0)
  config = dataclasses.replace(sparse, run_dir=str(tmp_path / "run"), grpo=plain, steps=1)
  before, after = rows_of(train(config), 0), rows_of(resampled, 0)
  for one, other in zip(before, after, strict=True):
    idle = len(set(one["rewards"])) == 1
    assert idle or one | {"round": 0, "discarded": other["discarded"]} == other
  assert any(row["round"] for row in after)
  (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
  assert not [name for name in line if name.startswith("dynamic/")]


def test_a_run_goes_on_and_is_replayed_as_it_was(sparse, resampled, tmp_path):
  shutil.copytree(resampled, tmp_path / "run")
  for lost in ("checkpoints/4", "eval_final.json", "model"):
    path = tmp_path / "run" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  train(dataclasses.replace(sparse, run_dir=str(tmp_path / "run")))
  for step in (2, 3):
    assert rows_of(tmp_path / "run", step) == rows_of(resampled, step)
  found = replay(resampled, 3)
  assert all(found.equal.values()) and not found.notes


@pytest.mark.slow
def test_a_run_on_two_devices_draws_in_sizes_that_they_divide(sparse, resampled, tmp_path):
  arguments = command(sparse, tmp_path / "run", 2, "--dynamic_rounds=3", "--mesh=data:2")
  arguments[arguments.index("--prompts_per_step=2")] = "--prompts_per_step=4"
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
  environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "64"}
  done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  for row in rows_of(tmp_path / "run", 0):
    assert len(set(row["rewards"])) == 2 or row["round"] == 0
  # The rounds are sampled in pairs, so that their number is even.
  discarded = [line["dynamic/discarded"] for line in read_metrics(tmp_path / "run/metrics.jsonl")]
  assert sum(discarded) > 0 and not any(number % 2 for number in discarded)
