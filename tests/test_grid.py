from __future__ import annotations

import dataclasses
import json

import pytest

from grpo_jax.config import RunConfig
from grpo_jax.rewards import TIERS, RewardWeights, score
from grpo_jax.settings import settings_of
from grpo_jax.sweeps.grid import (
  WEIGHTS_READ,
  Cell,
  axis_values,
  grid,
  with_equal_completions,
  without_idle_weights,
)
from grpo_jax.tasks.schema import ToolTask

SETTINGS = settings_of(RunConfig)


def test_grid_is_every_combination_with_the_first_axis_slowest():
  cells = grid({"seed": [0, 1], "reward": ["binary", "tiered"]})
  assert [tuple(cell.settings.values()) for cell in cells] == [
    (0, "binary"), (0, "tiered"), (1, "binary"), (1, "tiered"),
  ]  # fmt: skip
  assert cells[0].arguments == ["--seed=0", "--reward=binary"]
  assert cells[1].repeated == cells[3].repeated == (("reward", "tiered"),)


def test_cell_names_are_folders_that_tell_cells_apart():
  cells = grid({"reward": ["0.8*tiered,0.2*a/b.py:f", "tiered"], "ordered_calls": [True, False]})
  names = [cell.name for cell in cells]
  assert len(set(names)) == 4
  assert names[-1] == "reward=tiered,ordered_calls=false"
  assert not any(letter in name for name in names for letter in "/*: ")


@pytest.mark.parametrize(
  ("texts", "flag", "values"),
  [
    (["0", " 2"], "seed", [0, 2]),
    (["0.5", "1e-3"], "clip_low", [0.5, 0.001]),
    (["true", "false"], "ordered_calls", [True, False]),
    (["none", "std"], "advantage", ["none", "std"]),
  ],
)
def test_axis_values_are_read_as_the_setting_s_type(texts, flag, values):
  found = axis_values(SETTINGS[flag], texts)
  assert found == values and all(type(value) is SETTINGS[flag].type for value in found)


@pytest.mark.parametrize(
  ("texts", "flag", "wrong"),
  [
    (["0.5"], "seed", "0.5 must be a whole number"),
    (["1", "-1"], "seed", "-1 must be at least 0"),
    (["yes"], "ordered_calls", "yes must be true or false"),
    (["1"], "clip_low", "1.0 must be above 0 and below 1"),
    (["mad"], "advantage", "mad must be one of std, none"),
    ([], "seed", " must be different values, at least one"),
    (["1", "01"], "seed", "1,01 must be different values, at least one"),
  ],
)
def test_axis_values_refuse_what_is_not_a_list_of_different_values(texts, flag, wrong):
  with pytest.raises(ValueError, match=f"^--{flag}={wrong}$"):
    axis_values(SETTINGS[flag], texts)


def test_weights_that_a_reward_does_not_read_make_no_extra_cells():
  axes = {"seed": [0], "reward": list(TIERS), "partial_execute": [0.25, 0.5]}
  found = [dict(cell.settings) for cell in without_idle_weights(grid(axes))]
  assert found == [
    {"seed": 0, "reward": "tiered", "partial_execute": 0.25},
    {"seed": 0, "reward": "tiered", "partial_execute": 0.5},
    {"seed": 0, "reward": "binary"},
    {"seed": 0, "reward": "graded"},
    {"seed": 0, "reward": "toolrl"},
  ]
  combined = without_idle_weights([Cell({"reward": "0.5*tiered,0.5*graded", "exact": 1.0})])
  assert "exact" in combined[0].settings  # of a reward that is not built in, all may count


TOOL = {
  "name": "book_taxi",
  "parameters": {
    "type": "object",
    "properties": {"pickup": {"type": "string"}, "seats": {"type": "integer"}},
    "required": ["pickup", "seats"],
  },
}
CALLS = [{"name": "book_taxi", "arguments": {"pickup": p, "seats": 2}} for p in ("Oslo", "Rome")]


def _task(truth, **extra):
  return ToolTask.from_row(
    {
      "prompt": [{"role": "user", "content": "book a taxi"}],
      "tools": [{"type": "function", "function": TOOL}],
      "reward_model": {"ground_truth": truth},
      "extra_info": extra,
    }
  )


# (task, answer): between them, each number of the built-in rewards decides one at least.
PROBES = [
  (_task(CALLS[:1]), json.dumps(CALLS[:1])),
  (_task(CALLS[:1]), json.dumps(CALLS[1:])),
  (_task(CALLS[:1]), json.dumps([{"name": "book_taxi", "arguments": {}}])),
  (_task(CALLS), json.dumps(CALLS[::-1])),
  (_task(CALLS[:1]), json.dumps(CALLS[0])),
  (_task("Where?", behavior="clarify", missing=["pickup"]), "Where should the pickup be?"),
  (_task("Where?", behavior="clarify", missing=["pickup"]), "Taxis are yellow in many cities."),
  (_task("Sorry, I can't help with that."), "Sorry, I can't help with that."),
  (_task("Sorry, I can't help with that."), "Taxis are yellow in many cities."),
]  # fmt: skip
OTHER = RewardWeights(
  exact=0.9,
  partial_execute=0.4,
  format_bonus=0.2,
  graded_floor=0.1,
  asks=0.9,
  partial_clarify=0.1,
  declines=0.9,
  partial_refuse=0.1,
  ordered_calls=True,
  max_text_chars=20,
)


@pytest.mark.parametrize("tiers", TIERS)
def test_the_table_of_weights_says_what_each_reward_reads(tiers):
  def totals(weights):
    return [score(answer, task, tiers, "auto", weights).total for task, answer in PROBES]

  usual = totals(RewardWeights())
  names = [field.name for field in dataclasses.fields(RewardWeights)]
  changed = {
    name
    for name in names
    if totals(dataclasses.replace(RewardWeights(), **{name: getattr(OTHER, name)})) != usual
  }
  assert changed == set(WEIGHTS_READ[tiers])


def test_equal_completions_set_the_steps():
  cells = grid({"prompts_per_step": [6, 12], "group_size": [4, 8]})
  found = with_equal_completions(cells, 960)
  assert [cell.settings["steps"] for cell in found] == [40, 20, 20, 10]
  with pytest.raises(ValueError, match="--completions=100 is not a multiple of the 24"):
    with_equal_completions(cells, 100)
