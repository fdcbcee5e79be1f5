"""A step's metrics say how many completions should call, do call, and fail at it."""

from __future__ import annotations

import numpy as np
import pytest

from grpo_jax.rewards import BuiltInReward
from grpo_jax.runs.rollouts import StepRecord, rollout_metrics, score_rollout
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.types import Prompts, Rollout

CALL = '[{"name": "f", "arguments": {"a": 1}}]'


def metrics_of(parse: str, *groups: tuple[str, list[str]]) -> dict[str, float]:
  """The metrics of one step: for each task its ground truth and the completions."""
  tools = [{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}]
  tasks = [
    ToolTask.from_row({"prompt": "x", "tools": tools, "reward_model": {"ground_truth": truth}})
    for truth, _ in groups
  ]
  texts = [text for _, some in groups for text in some]
  shape = (len(groups), len(groups[0][1]), 1)
  tokens = np.arange(len(texts)).reshape(shape)  # a token is a text
  ones = np.ones(shape, bool)
  prompts = Prompts(tokens[:, 0], ones[:, 0], np.arange(len(groups)))
  drawn = Rollout(prompts, tokens, ones, ones, np.zeros(shape), np.zeros(shape))
  record = StepRecord(step=0)
  record.tasks, record.drawn = tasks, drawn
  reward = BuiltInReward("tiered", parse)
  record.scored = score_rollout(drawn, tasks, reward, lambda ids: texts[ids[0]])
  return rollout_metrics(record, limit=9, stop_ids=())


def test_calls_are_counted_as_wanted_made_and_unparsed():
  groups = (
    (CALL, [CALL, f"Here: {CALL}", "Which a?", '[{"name": "f"']),
    ("Which a?", [CALL, "Which a?", "Which a?", "f(a=1) it is"]),
  )
  found = metrics_of("strict", *groups)
  # Wanted or meant: the first four and two of the others, of which two parse.
  assert found["calls/wanted"] == 0.5 and found["calls/made"] == 5 / 8
  assert found["calls/unparsed"] == pytest.approx(4 / 6)
  assert metrics_of("auto", *groups)["calls/unparsed"] == pytest.approx(3 / 6)


def test_where_no_call_is_wanted_or_meant_no_share_of_them_is_told():
  found = metrics_of("strict", ("Which a?", ["Which a?", "Sorry, I can't."]))
  assert found["calls/wanted"] == found["calls/made"] == 0
  assert "calls/unparsed" not in found
