"""The flags of the training script: what they become, and how contradictory ones end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "train_grpo.py"
CONTRADICTIONS = {
  "--group_size=1": "--group_size=1 must be at least 2: a candidate is compared",
  "--prompts_per_step=8 --micro_batch_prompts=3": "--micro_batch_prompts=3 does not divide the 8",
  "--prompts_per_step=8 --minibatches=5": "--minibatches=5 does not divide --prompts_per_step=8",
  "--steps=0": "--steps=0 must be at least 1",
  "--mesh=model:2": "AXIS one of data, fsdp, tensor",
  "--top_p=0": "--top_p=0.0 must be above 0 and at most 1",
  "--kl_weight=-1": "--kl_weight=-1.0 must be at least 0",
  "--lora_alpha=8": "--lora_alpha=8.0 needs a --lora_rank above 0",
  "--lora_targets=q,v": "--lora_targets=q,v needs a --lora_rank above 0",
  "--save_merged": "--save_merged=True needs a --lora_rank above 0",
  "--lora_rank=4 --lora_targets=q,head": "lora_targets=q,head; expected some of q,k,v,o,gate,up",
  "--lora_rank=4 --lora_alpha=0": "--lora_alpha=0.0 must be above 0",
  "--lora_rank=-1": "--lora_rank=-1 must be at least 0",
  "--partial_clarify=1.5": "--partial_clarify=1.5 must be at least 0 and at most 1",
  "--adam_b2=1": "--adam_b2=1.0 must be at least 0 and below 1",
  "--track=wandb": "--track=wandb must be one of tensorboard, mlflow",
  "--preset=huge": "must be a file that ends in .toml, or one of qwen_grpo, qwen_warm, tiny",
  "--template_date=24.12.2023": "--template_date=24.12.2023 must be a day as YYYY-MM-DD",
  "--template_date=20231224": "--template_date=20231224 must be a day as YYYY-MM-DD",
  "--eval_data=held_out.jsonl": "--eval_data=held_out.jsonl must be NAME=FILE",
  "--eval_data=https://bob:pw@host/x": "--eval_data=https://***@host/x must be NAME=FILE",
}
# Starting Python and JAX takes seconds: one process tries all the flags in turn.
DRIVER = """
import dataclasses, json, runpy, sys
from absl.testing import flagsaver

script, *cases = sys.argv[1:]
names = runpy.run_path(script, run_name="train_grpo")
FLAGS, found = names["FLAGS"], {}
FLAGS([script])
for case in cases:
  with flagsaver.flagsaver():
    FLAGS([script, *case.split()])
    try:
      if case.startswith("--run_dir"):
        found[case] = dataclasses.asdict(names["run_config"]())
      else:
        names["main"]([])
    except SystemExit as end:
      found[case] = end.code
print(json.dumps(found))
"""
GIVEN = (
  "--run_dir=runs/a --model=m --data=d.jsonl --eval_data=x=x.jsonl --eval_data=y=y.jsonl "
  "--reward=graded --steps=11 --prompts_per_step=12 --group_size=5 --micro_batch_prompts=3 "
  "--minibatches=2 --inner_updates=4 --max_prompt_tokens=77 --max_completion_tokens=33 "
  "--temperature=0.7 --top_p=0.9 --top_k=20 --min_p=0.05 --learning_rate=0.002 --kl_weight=0.03 "
  "--clip_low=0.1 --clip_high=0.3 --seed=9 --mesh=data:1 --dtype=bfloat16 --checkpoint_every=6 "
  "--eval_every=5 --resume=never --track=tensorboard,mlflow --advantage=none --aggregation=token "
  "--warmup_steps=1 --weight_decay=0.1 --clip_norm=2 --keep_checkpoints=3 --eval_limit=8 "
  "--data_seed=4 --parse=auto --remat=dots --lora_rank=4 --lora_alpha=8 --lora_targets=q,v "
  "--optimizer=adafactor --save_merged --template_date=2023-12-24 --plain_user_text=true"
)
PRESET = "--run_dir=runs/b --preset=tiny --group_size=4"


@pytest.fixture(scope="module")
def outcomes():
  command = [sys.executable, "-c", DRIVER, str(SCRIPT), *CONTRADICTIONS, GIVEN, PRESET]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("flags", CONTRADICTIONS)
def test_contradictory_flags_end_in_one_sentence(outcomes, flags):
  message = outcomes[flags]
  assert isinstance(message, str) and message.startswith("train_grpo: ")
  assert CONTRADICTIONS[flags] in message and "\n" not in message


def test_the_script_ends_with_a_status_and_without_a_traceback(tmp_path):
  command = [sys.executable, str(SCRIPT), "--group_size=1", f"--run_dir={tmp_path / 'run'}"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1 and done.stdout == ""
  assert "Traceback" not in done.stderr
  assert done.stderr.splitlines()[-1].startswith("train_grpo: --group_size=1 must be at least 2")
  assert not (tmp_path / "run").exists()


def test_every_flag_reaches_the_settings(outcomes):
  found = outcomes[GIVEN]
  grpo, sampling = found["grpo"], found["grpo"]["sampling"]
  renamed = {"max_completion_tokens": "max_tokens", "parse": "parse"}
  for flag in GIVEN.replace("--eval_data=x=x.jsonl --eval_data=y=y.jsonl ", "").split():
    name, _, text = flag.removeprefix("--").partition("=")
    homes = [home for home in (found, grpo, sampling, found["reward_config"])
             if renamed.get(name, name) in home]  # fmt: skip
    assert homes, name
    for home in homes:
      value = home[renamed.get(name, name)]
      if isinstance(value, list):
        assert value == text.split(","), name
      elif isinstance(value, bool):
        assert value, name
      else:
        assert value == type(value)(text), name
  assert found["eval_data"] == [["x", "x.jsonl"], ["y", "y.jsonl"]]


def test_flags_that_are_given_win_over_the_preset(outcomes):
  found = outcomes[PRESET]
  assert found["grpo"]["sampling"]["group_size"] == 4
  assert found["reward_config"]["group_size"] == 4
  assert (found["steps"], found["prompts_per_step"], found["learning_rate"]) == (80, 12, 7e-5)
  assert found["kl_every"] == 5 and found["run_dir"] == "runs/b"
