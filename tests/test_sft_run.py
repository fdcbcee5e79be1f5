"""Runs on demonstrations: whole, killed and gone on with, on several devices; and what follows."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_run import STEPS, without_times

from grpo_jax import train as training
from grpo_jax.config import RunConfig, config_of
from grpo_jax.grpo import GRPOConfig
from grpo_jax.models import (
  attach,
  completion_logprobs,
  load_adapters,
  load_config,
  load_pretrained,
)
from grpo_jax.replay import replay
from grpo_jax.rewards import load_reward
from grpo_jax.runs.installation import TINY_MODEL
from grpo_jax.runs.trackers import read_metrics
from grpo_jax.sampling import SamplingConfig
from grpo_jax.train import train

SFT = GRPOConfig(SamplingConfig(max_tokens=48), technique="sft", aggregation="token")
LORA = {"lora_rank": 4, "lora_alpha": 8.0, "lora_targets": "q,v,down"}


def sft_of(settings: RunConfig, folder: Path, **changes) -> RunConfig:
  """The small run on demonstrations, with a reward that knows right answers."""
  return dataclasses.replace(settings, run_dir=str(folder), grpo=SFT, reward="binary", **changes)


@pytest.fixture(scope="module")
def tuned(settings, tmp_path_factory):
  """The folder of a run of adapters on demonstrations."""
  folder = tmp_path_factory.mktemp("sft") / "run"
  return train(sft_of(settings, folder, learning_rate=0.05, **LORA))


def test_a_run_learns_demonstrations_that_are_right(tuned):
  lines = read_metrics(tuned / "metrics.jsonl")
  assert [line["reward"] for line in lines] == [1.0] * STEPS  # of the demonstrations themselves
  assert lines[-1]["nll"] < lines[0]["nll"] - 0.1  # four steps of a random policy
  for line in lines:
    assert line["loss"] == pytest.approx(line["nll"], rel=1e-5) and line["grad_norm"] > 0
    assert not [name for name in line if name.startswith(("clip_ratio/", "sampling/", "kl"))]
    assert "frac_reward_zero_std" not in line and not line["alarms/no_variance"]
  record = json.loads((tuned / "config.json").read_text())
  assert config_of(record).technique == "sft"
  rows = (tuned / "rollouts" / "step_000000.jsonl").read_text().splitlines()
  assert [len(json.loads(row)["completions"]) for row in rows] == [1, 1]
  assert (tuned / "nll.png").is_file() and not (tuned / "equal_groups.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{}, {"lora_rank": 8}], ids=["whole", "lora"])
def test_the_embedded_policy_gains_from_demonstrations(settings, tmp_path, lora):
  """On tasks that it is poor at: it learns what it is shown, and does it when it is asked."""
  config = sft_of(
    settings, tmp_path / "run", model=str(TINY_MODEL), steps=12, warmup_steps=0, eval_every=0,
    learning_rate=3e-3 if lora else 3e-4, checkpoint_every=12, **lora
  )  # fmt: skip
  folder = train(config)
  lines = read_metrics(folder / "metrics.jsonl")
  assert lines[-1]["nll"] < lines[0]["nll"] / 2
  score = lambda when: json.loads((folder / f"eval_{when}.json").read_text())["held_out"]
  assert score("final")["reward_mean"] > score("base")["reward_mean"]


def test_an_interrupted_run_ends_as_one_that_never_stopped(settings, tuned, tmp_path, monkeypatch):
  config = sft_of(settings, tmp_path / "run", learning_rate=0.05, **LORA)
  take_step = training.take_step

  def interrupted(setup, state, number, *rest):
    if number == 3:  # step 2 is lost and done again
      raise KeyboardInterrupt
    return take_step(setup, state, number, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(training, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
      train(config)
  train(config)
  assert without_times(tmp_path / "run") == without_times(tuned)
  for file in ("adapter/adapter_model.safetensors", "rollouts/step_000003.jsonl"):
    assert (tmp_path / "run" / file).read_bytes() == (tuned / file).read_bytes(), file
  found = replay(tuned, 3)
  assert all(found.equal.values()) and not found.notes


def test_demonstrations_over_the_limit_are_counted(settings, tmp_path):
  short = dataclasses.replace(SFT, sampling=SamplingConfig(max_tokens=12))
  config = dataclasses.replace(sft_of(settings, tmp_path / "run"), grpo=short)
  with pytest.raises(
    ValueError, match=r"of 5 completions of train are longer than --max_completion_tokens=12"
  ):
    training.read_data(config)


@pytest.fixture(scope="module")
def warm(settings, tuned, tmp_path_factory):
  """The settings of a GRPO run from those adapters, with a KL term."""
  return dataclasses.replace(
    settings,
    run_dir=str(tmp_path_factory.mktemp("warm") / "run"),
    init_adapter=str(tuned / "adapter"),
    grpo=dataclasses.replace(settings.grpo, inner_updates=1, micro_batch_prompts=0),
    steps=2,
    checkpoint_every=1,
    eval_every=0,
  )


def test_grpo_starts_from_the_adapters_of_a_warm_start(settings, tuned, warm):
  data = training.read_data(warm)
  setup, state = training.set_up(data)
  assert (data.config.lora_rank, data.config.lora_alpha) == (4, 8.0)
  assert data.config.lora_targets == "q,v,down"
  with load_reward(warm.reward, warm.reward_config) as reward:
    _, record = training.take_step(setup, state, 0, reward)
  adapters, lora = load_adapters(tuned / "adapter", load_config(settings.model))
  config, base = load_pretrained(settings.model)
  drawn, score = record.drawn, jax.jit(completion_logprobs, static_argnums=0)
  logp_under = lambda params: np.where(
    drawn.loss_mask,
    score(config, params, drawn.prompts.tokens, drawn.prompts.mask, drawn.tokens).logp,
    0,
  )
  np.testing.assert_allclose(drawn.logp, logp_under(attach(base, adapters, lora)), atol=1e-5)
  assert np.abs(drawn.logp - logp_under(base)).max() > 0.1
  # The reference is the policy of the start, not the base.
  assert record.metrics["kl"] == pytest.approx(0, abs=1e-6)


def test_a_run_from_adapters_is_recorded_gone_on_with_and_replayed(warm, tuned, tmp_path):
  folder = train(warm)
  record = json.loads((folder / "config.json").read_text())
  assert len(record["init_adapter_sha256"]) == 64 and record["lora_rank"] == 4
  # What is evaluated as the base is the warm-started policy.
  before, after = (
    json.loads(path.read_text())["held_out"]
    for path in (folder / "eval_base.json", tuned / "eval_final.json")
  )
  assert before["completion_tokens"] != after["completion_tokens"]  # other limits
  assert before["settings"]["init_adapter_sha256"] == record["init_adapter_sha256"]
  found = replay(folder, 1)
  assert all(found.equal.values()) and not found.notes

  shutil.copytree(folder, tmp_path / "run")
  for lost in ("checkpoints/2", "adapter"):
    shutil.rmtree(tmp_path / "run" / lost)
  config = dataclasses.replace(warm, run_dir=str(tmp_path / "run"))
  train(config)
  for file in ("adapter/adapter_model.safetensors", "rollouts/step_000001.jsonl"):
    assert (tmp_path / "run" / file).read_bytes() == (folder / file).read_bytes(), file
  other = tmp_path / "adapter"
  shutil.copytree(folder / "adapter", other)
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
  with pytest.raises(ValueError, match=r"init_adapter_sha256 \(.* then, .* now\)"):
    train(dataclasses.replace(config, init_adapter=str(other)))


@pytest.mark.parametrize(
  "flags", [{"lora_rank": 8}, {**LORA, "lora_alpha": 16.0}, {**LORA, "lora_targets": "q,v"}]
)
def test_flags_that_differ_from_the_adapters_are_refused(warm, tmp_path, flags):
  config = dataclasses.replace(warm, run_dir=str(tmp_path / "run"))
  training.read_data(dataclasses.replace(config, **{**LORA, "lora_targets": "down,q,v"}))
  with pytest.raises(
    ValueError, match=r"has --lora_rank=4 --lora_alpha=8\.0 --lora_targets=q,v,down, which differs"
  ):
    training.read_data(dataclasses.replace(config, **flags))


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
  """The numbers of one step on demonstrations on several meshes, from a process with 8 devices."""
  out = tmp_path_factory.mktemp("meshes") / "out.npz"
  script = Path(__file__).with_name("sft_mesh_step.py")
  done = subprocess.run(
    [sys.executable, str(script), str(out), "data:1", "data:2,fsdp:2,tensor:2"],
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  with np.load(out) as found:
    return dict(found)


@pytest.mark.parametrize("name", ["gradient", "metrics"])
def test_a_step_on_demonstrations_is_the_same_on_eight_devices(steps, name):
  one, eight = (steps[f"{mesh}/{name}"] for mesh in ("data:1", "data:2,fsdp:2,tensor:2"))
  assert np.abs(one).max() > 0.01
  np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-5 * max(np.abs(one).max(), 1))
