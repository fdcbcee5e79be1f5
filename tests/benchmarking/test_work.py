"""Real work: lengths vary, answers end, and every program is given the same."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from grpo_jax.benchmarking.peers import write_work
from grpo_jax.benchmarking.shapes import Workload
from grpo_jax.benchmarking.timing import TimedStep
from grpo_jax.benchmarking.work import ToolWork, text_reward
from grpo_jax.rewards import load_reward
from grpo_jax.sampling import LENGTH_BUCKETS
from grpo_jax.tasks import load_tokenizer
from grpo_jax.tasks.batches import bucket_length

TURNS = Path(__file__).parents[2] / "experiments" / "peers" / "turns.py"
LOAD = Workload(prompts=4, group_size=2, completion_tokens=64)


@pytest.fixture(scope="module")
def work():
  return ToolWork(LOAD, steps=3)


def test_a_step_runs_what_training_runs(work):
  step = TimedStep(work)
  lengths = [len(ids) for ids in work.prompts(0)]
  assert len(set(lengths)) > 1 and max(lengths) <= work.load.prompt_tokens
  assert step.prompts().tokens.shape == (4, bucket_length(max(lengths), LENGTH_BUCKETS))
  drawn = []
  score = work.rewards
  work.rewards = lambda number, rollout: drawn.append(rollout) or score(number, rollout)
  timed = step.run()
  del work.rewards
  (rollout,) = drawn
  ended = np.isin(rollout.tokens, work.stop_ids) & rollout.completion_mask
  assert ended.any() and timed.tokens == rollout.completion_mask.sum() < LOAD.tokens
  longest = rollout.completion_mask.sum(-1).max()
  updated = next(shape for shape in step._compiled if len(shape) == 5)  # prompts, completions
  assert updated[2:] == (4, 2, min(bucket_length(longest, LENGTH_BUCKETS), 64))
  rewards = score(0, rollout)
  assert timed.equal_groups == np.mean([len(set(group)) == 1 for group in rewards.tolist()])


def test_peers_get_the_same_prompts_answers_and_end(work, tmp_path):
  given = json.loads(write_work(work, 2, tmp_path).read_text())
  tokenizer = load_tokenizer(given["model"])
  assert [tokenizer(text)["input_ids"] for text in given["steps"][1]] == work.prompts(1)
  assert given["wanted"][1] == [task.answer for task in work.tasks[1]]
  assert given["stop_ids"] == list(work.stop_ids) and given["temperature"] == 0.5
  assert given["prompt_tokens"] == work.load.prompt_tokens


CALL = '[{"name": "f", "arguments": {"x": 1}}]'
CASES = [
  (CALL, CALL, 1.0),
  (f" {CALL}\n", CALL, 1.0),
  ('[{"name": "f", "arguments": {"x": 2}}]', CALL, 0.5),
  ('[{"name": "g", "arguments": {"x": 1}}]', CALL, 0.0),
  ("Which x?", CALL, 0.0),
  ("Which x should I use?", "What is the x?", 1.0),
  ("Sorry, I can't.", "What is the x?", 0.0),
  ("I can't do that.", "Sorry, I won't help.", 1.0),
  (CALL, "Sorry, I won't help.", 0.0),
  ("", "Sorry, I won't help.", 0.0),
]


def test_every_program_has_the_same_reward():
  theirs = runpy.run_path(str(TURNS))
  texts, wanted, expected = (list(column) for column in zip(*CASES, strict=True))
  assert [text_reward(*case[:2]) for case in CASES] == expected
  assert theirs["rewards"](texts, wanted) == expected


def test_the_stand_in_is_close_to_the_tiered_reward(work):
  tasks = [task for step in work.tasks for task in step]
  tiered = load_reward("tiered")
  scored = [found.total for found in tiered.score_batch([task.answer for task in tasks], tasks)]
  assert scored == [text_reward(task.answer, task.answer) for task in tasks] == [1.0] * len(tasks)
  assert jax.tree.leaves(work.params())[0].dtype == np.float32
