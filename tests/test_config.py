"""Settings that contradict each other, the plan in words, and the record of a run."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from grpo_jax.config import (
  GRPOConfig,
  RunConfig,
  SamplingConfig,
  changed_settings,
  config_of,
  read_preset,
  run_record,
)
from grpo_jax.rewards import JudgeConfig, RewardConfig, RewardWeights
from grpo_jax.settings import build, settings_of


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"steps": 0}, r"--steps=0 must be at least 1"),
    ({"prompts_per_step": 0}, r"--prompts_per_step=0 must be at least 1"),
    ({"max_prompt_tokens": 0}, r"--max_prompt_tokens=0"),
    ({"checkpoint_every": 0}, r"--checkpoint_every=0"),
    ({"learning_rate": 0.0}, r"--learning_rate=0.0 must be above 0"),
    ({"clip_norm": float("inf")}, r"--clip_norm=inf must be a finite number above 0"),
    ({"weight_decay": -1.0}, r"--weight_decay=-1.0 must be at least 0"),
    ({"seed": -1}, r"--seed=-1 must be at least 0"),
    ({"seed": True}, r"--seed=True must be a whole number"),
    ({"eval_every": -1}, r"--eval_every"),
    ({"track": ("tensorboard", "wandb")}, r"--track=tensorboard,wandb must be one of tensorboard"),
    ({"lora_alpha": 8.0}, r"--lora_alpha=8.0 needs a --lora_rank above 0"),
    ({"lora_rank": 2, "lora_targets": "q,x"}, r"lora_targets=q,x; expected some of q,k,v,o"),
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
    ({"dtype": "int8"}, r"--dtype=int8 must be one of auto, float32, bfloat16"),
    ({"resume": "always"}, r"--resume=always must be one of auto, never"),
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
  config = RunConfig(run_dir="", steps=50, prompts_per_step=12, grpo=grpo, dtype="float32")
  assert config.plan() == (
    "50 steps of 12 prompts x 8 candidates = 96 completions of up to 64 tokens; "
    "6 optimizer step(s) on each batch, 2 prompts (16 completions) in a backward pass; computed "
    "in float32"
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
    save_merged=True, evaluate_final=False,
  )  # fmt: skip
  free = {name for name, setting in settings_of(RunConfig).items() if setting.free}
  assert free == {name for name in vars(moved) if getattr(moved, name) != getattr(config, name)}
  assert changed_settings(old, run_record(moved, {"train": "abc"})) == []

  for changes, told in (
    ({"seed": 1}, "seed (0 then, 1 now)"),
    ({"learning_rate": 2e-6}, "learning_rate (1e-06 then, 2e-06 now)"),
    ({"adam_b2": 0.95}, "adam_b2 (0.99 then, 0.95 now)"),
    ({"reward": "binary"}, 'reward ("tiered" then, "binary" now)'),
    ({"dtype": "bfloat16"}, 'dtype ("auto" then, "bfloat16" now)'),
    ({"grpo": GRPOConfig(kl_weight=0.1)}, "kl_weight (0.0 then, 0.1 now)"),
    (
      {"grpo": GRPOConfig(SamplingConfig(max_tokens=9))},
      "max_completion_tokens (64 then, 9 now)",
    ),
    ({"reward_config": RewardConfig(parse="auto")}, 'parse ("strict" then, "auto" now)'),
    ({"prompts_per_step": 4}, "prompts_per_step (8 then, 4 now)"),
    (
      {"eval_data": (("unseen", "synthetic:unseen"),)},
      'eval_data ([["seen", "synthetic:seen"], ["unseen", "synthetic:unseen"]] then, '
      '[["unseen", "synthetic:unseen"]] now)',
    ),
  ):
    other = run_record(dataclasses.replace(config, **changes), {"train": "abc"})
    assert changed_settings(old, other) == [told]
  judged = RewardConfig(judge=JudgeConfig("m", retries=1))
  (found,) = changed_settings(
    old, run_record(dataclasses.replace(config, reward_config=judged), {"train": "abc"})
  )
  assert found.startswith('judge (null then, {"model": "m"')
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
  with pytest.raises(ValueError, match=r"not the record of a run: it has no 'grpo'"):
    config_of({"run_dir": "x"})
  record = run_record(config, {}) | {"steps": "many"}
  with pytest.raises(ValueError, match=r"can read: --steps=many must be a whole number"):
    config_of(record)


# What version 0.1 wrote down of its settings, for a run of the whole model.
RECORD_0_1 = json.loads("""{
  "run_dir": "full", "model": "model", "data": "train.jsonl",
  "eval_data": [["held_out", "held_out.jsonl"]], "reward": "reward.py:low", "steps": 4,
  "prompts_per_step": 2, "max_prompt_tokens": 1024, "lora_rank": 0, "lora_alpha": 32.0,
  "lora_targets": "q,k,v,o,gate,up,down", "optimizer": "adamw", "learning_rate": 0.01,
  "warmup_steps": 2, "decay": "none", "weight_decay": 0.0, "clip_norm": 1.0, "seed": 0,
  "data_seed": 0, "mesh": "data:1,fsdp:1,tensor:1", "dtype": "float32", "checkpoint_every": 2,
  "keep_checkpoints": 2, "eval_every": 3, "kl_every": 0, "eval_limit": 0, "resume": "auto",
  "allow_changes": false, "max_bad_steps": 3, "track": [], "profile": 0,
  "reward_config": {
    "parse": "strict",
    "weights": {
      "exact": 1.0, "partial_execute": 0.5, "graded_floor": 0.0, "asks": 1.0,
      "partial_clarify": 0.25, "declines": 1.0, "partial_refuse": 0.25, "ordered_calls": false,
      "max_text_chars": 1000
    },
    "normalise": "none", "group_size": 3, "on_error": 0.0, "time_limit": 5.0, "workers": 2,
    "judge": null
  },
  "grpo": {
    "sampling": {
      "group_size": 3, "max_tokens": 6, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
      "min_p": 0.0, "stop_ids": [], "pad_id": 0
    },
    "advantage": "std", "aggregation": "sequence", "clip_low": 0.2, "clip_high": 0.2,
    "kl_weight": 0.05, "inner_updates": 2, "minibatches": 1, "micro_batch_prompts": 1,
    "remat": "none", "skip_idle": false, "gather_weights": true
  },
  "data_sha256": {"train": "7caa"}, "model_sha256": "d12b", "reward_sha256": {"reward.py": "65ac"},
  "git_commit": "fa4cd7e9246f5e6cfd74518327ef73224a7b302c"
}""")
ADAPTERS_0_1 = {"lora_rank": 2, "lora_alpha": 4.0, "learning_rate": 0.02}


@pytest.mark.parametrize("more", [{}, ADAPTERS_0_1])
def test_a_record_of_version_0_1_is_read_and_its_folder_goes_on(more):
  old = {**RECORD_0_1, **more}
  known = {key: old[key] for key in ("data_sha256", "model_sha256", "reward_sha256")}
  # Today's flags for the same run.
  given = {
    "run_dir": "full", "model": "model", "data": "train.jsonl", "reward": "reward.py:low",
    "eval_data": (("held_out", "held_out.jsonl"),), "steps": 4, "prompts_per_step": 2,
    "learning_rate": 0.01, "warmup_steps": 2, "checkpoint_every": 2, "eval_every": 3,
    "group_size": 3, "max_completion_tokens": 6, "kl_weight": 0.05, "inner_updates": 2,
    "dtype": "float32",
  }  # fmt: skip
  config = build(RunConfig, given | more)
  assert config_of(old) == config
  # The day that templates show is written down since; what an old run showed is not known.
  now = dataclasses.asdict(dataclasses.replace(config, template_date="2026-01-31")) | known
  assert changed_settings(old, now) == []
  other = dataclasses.replace(config, adam_b1=0.8, clip_norm=2.0)
  assert changed_settings(old, dataclasses.asdict(other) | known) == [
    "clip_norm (1.0 then, 2.0 now)",
    "adam_b1 (0.9 then, 0.8 now)",
  ]


def test_a_record_of_a_later_version_is_read_as_far_as_it_is_known():
  record = json.loads(json.dumps(run_record(RunConfig(run_dir="x", seed=3), {})))
  later = {**record, "warp": 9, "grpo": {**record["grpo"], "warp": 9}}
  assert (
    config_of(later) == RunConfig(run_dir="x", seed=3) and changed_settings(later, record) == []
  )


def test_presets_are_files_of_settings(tmp_path):
  names = settings_of(RunConfig)
  assert read_preset("tiny")["steps"] == 80 and not set(read_preset("tiny")) - set(names)
  own = tmp_path / "mine.toml"
  own.write_text("steps = 3  # few\n")
  assert read_preset(str(own)) == {"steps": 3}
  own.write_text("steps = ")
  with pytest.raises(ValueError, match=r"mine.toml: "):
    read_preset(str(own))


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
