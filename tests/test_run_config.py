"""Settings that contradict each other, the plan in words, and the record of a run."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from grpo_jax.grpo import GRPOConfig
from grpo_jax.rewards import JudgeConfig, RewardConfig, RewardWeights
from grpo_jax.run_config import FREE, RunConfig, changed_settings, config_of, run_record
from grpo_jax.sampling import SamplingConfig


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"steps": 0}, r"--steps=0 must be at least 1"),
    ({"prompts_per_step": 0}, r"--prompts_per_step=0 must be at least 1"),
    ({"max_prompt_tokens": 0}, r"--max_prompt_tokens=0"),
    ({"checkpoint_every": 0}, r"--checkpoint_every=0"),
    ({"learning_rate": 0.0}, r"--learning_rate and --clip_norm must be positive"),
    ({"weight_decay": -1.0}, r"--weight_decay not below 0"),
    ({"seed": -1}, r"--seed=-1 must not be negative"),
    ({"eval_every": -1}, r"--eval_every"),
    (
      {"prompts_per_step": 8, "grpo": GRPOConfig(minibatches=3)},
      r"--minibatches=3 does not divide --prompts_per_step=8",
    ),
    (
      {"prompts_per_step": 8, "grpo": GRPOConfig(micro_batch_prompts=3)},
      r"--micro_batch_prompts=3 does not divide the 8 prompts",
    ),
    (
      {"prompts_per_step": 8, "grpo": GRPOConfig(minibatches=2, micro_batch_prompts=8)},
      r"--micro_batch_prompts=8 does not divide the 4 prompts",
    ),
    ({"mesh": "model:2"}, r"--mesh=model:2"),
    ({"dtype": "int8"}, r"--dtype=int8; expected one of float32, bfloat16"),
    ({"resume": "always"}, r"--resume=always; expected one of auto, never"),
  ],
)
def test_settings_that_contradict_each_other_are_one_sentence(settings, message):
  with pytest.raises(ValueError, match=message) as caught:
    RunConfig(run_dir="runs/x", **settings)
  assert "\n" not in str(caught.value)


def test_the_plan_says_what_a_batch_is():
  grpo = GRPOConfig(
    sampling=SamplingConfig(group_size=8, max_tokens=64),
    inner_updates=2,
    minibatches=3,
    micro_batch_prompts=2,
  )
  config = RunConfig(run_dir="", steps=50, prompts_per_step=12, grpo=grpo)
  assert config.plan() == (
    "50 steps of 12 prompts x 8 candidates = 96 completions of up to 64 tokens; "
    "6 optimizer step(s) on each batch, 2 prompts (16 completions) in a backward pass"
  )


def test_the_record_holds_what_a_rerun_needs():
  config = RunConfig(run_dir="runs/x", seed=5, grpo=GRPOConfig(clip_high=0.3))
  record = json.loads(json.dumps(run_record(config, {"train": "abc"})))
  for field in dataclasses.fields(RunConfig):
    assert field.name in record
  assert record["seed"] == 5 and record["grpo"]["clip_high"] == 0.3
  assert record["grpo"]["sampling"]["group_size"] == 8
  assert record["data_sha256"] == {"train": "abc"}
  assert record["packages"]["jax"] == jax.__version__
  assert record["devices"][0].startswith(jax.devices()[0].platform)


def test_a_folder_belongs_to_a_run_with_the_same_numbers():
  config = RunConfig(run_dir="runs/x", lora_rank=4)
  old = json.loads(json.dumps(run_record(config, {"train": "abc"})))
  assert changed_settings(old, run_record(config, {"train": "abc"})) == []

  moved = dataclasses.replace(
    config, run_dir="runs/y", steps=7, checkpoint_every=3, keep_checkpoints=9, resume="never",
    track=("mlflow",), mesh="fsdp:-1", allow_changes=True, max_bad_steps=9, profile=2,
    save_merged=True,
  )  # fmt: skip
  assert set(FREE) == {f for f in FREE if getattr(moved, f) != getattr(config, f)}
  assert changed_settings(old, run_record(moved, {"train": "abc"})) == []

  for changes in (
    {"seed": 1}, {"learning_rate": 2e-6}, {"reward": "binary"}, {"dtype": "bfloat16"},
    {"grpo": GRPOConfig(kl_weight=0.1)}, {"reward_config": RewardConfig(parse="auto")},
    {"eval_data": (("unseen", "synthetic:unseen"),)}, {"prompts_per_step": 4},
  ):  # fmt: skip
    other = run_record(dataclasses.replace(config, **changes), {"train": "abc"})
    (found,) = changed_settings(old, other)
    assert found.startswith(f"{next(iter(changes))} (") and " then, " in found
  # A rate that falls to the end depends on where the end is.
  falling = dataclasses.replace(config, decay="linear")
  old = json.loads(json.dumps(run_record(falling, {"train": "abc"})))
  longer = run_record(dataclasses.replace(falling, steps=7), {"train": "abc"})
  assert changed_settings(old, longer) == ["steps (100 then, 7 now)"]
  old = json.loads(json.dumps(run_record(config, {"train": "abc"})))
  (found,) = changed_settings(old, run_record(config, {"train": "xyz"}))
  assert found == 'data_sha256 ({"train": "abc"} then, {"train": "xyz"} now)'


def test_settings_come_back_from_their_record():
  judge = JudgeConfig(model="m", base_url="http://localhost:1/v1")
  config = RunConfig(
    run_dir="runs/x", seed=3, track=("mlflow",), eval_data=(("a.b", "x.jsonl"),),
    grpo=GRPOConfig(SamplingConfig(group_size=4, stop_ids=(1, 2)), kl_weight=0.1),
    reward_config=RewardConfig(
      parse="auto", judge=judge, weights=RewardWeights(partial_execute=0.1)
    ),
  )  # fmt: skip
  assert config_of(json.loads(json.dumps(run_record(config, {})))) == config
  with pytest.raises(ValueError, match=r"config.json is not one of this version: 'grpo'"):
    config_of({"run_dir": "x"})


TOKEN = "hf_" + "aB3" * 12


def test_no_secret_goes_into_the_record():
  judge = JudgeConfig("m", "https://bob:pass%40word@judge:8000/v1?api_key=q1w2&x=1", "sk-secret")
  config = RunConfig(
    run_dir="runs/x", data=f"data/{TOKEN}/tasks.jsonl",
    eval_data=(("seen", "https://bob:p@ss@host/tasks.jsonl?sig=abc%2Bd"),),
    reward_config=RewardConfig(judge=judge),
  )  # fmt: skip
  record = json.loads(json.dumps(run_record(config, {})))
  text = json.dumps(record)
  for secret in ("sk-secret", "bob", "pass%40word", "q1w2", TOKEN, "p@ss", "abc%2Bd"):
    assert secret not in text
  assert record["reward_config"]["judge"]["base_url"] == "https://***@judge:8000/v1?api_key=***&x=1"
  assert record["eval_data"] == [["seen", "https://***@host/tasks.jsonl?sig=***"]]
  assert record["data"] == "data/***/tasks.jsonl"
  assert "sk-secret" not in repr(config) and "pass%40word" not in repr(config)

  # Another key is no other run; nor is a record of a version that wrote the secrets down.
  assert changed_settings(record, run_record(config_of(record), {})) == []
  other = dataclasses.replace(
    judge, api_key="sk-another", base_url=judge.base_url.replace("4", "5")
  )
  other = dataclasses.replace(config, reward_config=RewardConfig(judge=other))
  assert changed_settings(record, run_record(other, {})) == []
  old = json.loads(json.dumps({**record, **dataclasses.asdict(config)}))
  assert changed_settings(old, run_record(config, {})) == []
  (changed,) = changed_settings(old, run_record(dataclasses.replace(config, data="d.jsonl"), {}))
  assert TOKEN not in changed


def test_what_only_looks_like_a_secret_is_recorded_as_it_is():
  config = RunConfig(
    run_dir="runs/x", data="/data/hf_datasets/sk-tools.jsonl",
    eval_data=(("a", "/home/bob@work/token=1/x.jsonl"),),
    reward_config=RewardConfig(judge=JudgeConfig("m", "http://localhost:1/v1")),
  )  # fmt: skip
  assert config_of(json.loads(json.dumps(run_record(config, {})))) == config


def test_a_split_whose_name_is_a_path_is_refused():
  with pytest.raises(ValueError, match=r"'../x' is no name of a split"):
    RunConfig(run_dir="x", eval_data=(("../x", "y.jsonl"),))


def test_split_names_that_would_hide_data_are_refused():
  # The record of a run, and of what it trained on, goes by these names.
  with pytest.raises(ValueError, match="--eval_data: train is the name of the training data"):
    RunConfig(run_dir="x", eval_data=(("seen", "a.jsonl"), ("train", "b.jsonl")))
  with pytest.raises(ValueError, match="--eval_data: two splits are called seen"):
    RunConfig(run_dir="x", eval_data=(("seen", "a.jsonl"), ("seen", "b.jsonl")))
