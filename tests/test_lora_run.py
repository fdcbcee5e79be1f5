"""A run that trains adapters: through the real entry, resumed, exported; and on several devices."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import train as training
from grpo_jax.config import RunConfig
from grpo_jax.models import attach, forward, load_adapters, load_pretrained, merge
from grpo_jax.runs.trackers import read_metrics
from grpo_jax.train import train

ONE, SPLIT = "data:1", "data:2,fsdp:2,tensor:2"


@pytest.fixture(scope="module")
def adapted(settings, tmp_path_factory):
  """The settings of the small run, with adapters in place of the whole model."""
  return dataclasses.replace(
    settings,
    run_dir=str(tmp_path_factory.mktemp("lora") / "run"),
    grpo=dataclasses.replace(settings.grpo, inner_updates=1, micro_batch_prompts=0),
    steps=2,
    lora_rank=4,
    lora_targets="q,v,down",
    warmup_steps=0,
    checkpoint_every=1,
    eval_every=0,
  )


@pytest.fixture(scope="module")
def finished(adapted):
  """The folder of a whole run, and the `Setup` behind it."""
  seen = []
  evaluate_all = training.evaluate_all
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      training, "evaluate_all", lambda run, *rest: (seen.append(run), evaluate_all(run, *rest))
    )
    folder = train(adapted)
  return folder, seen[-1]


def test_only_adapters_are_trained_and_stored(adapted, finished):
  folder, run = finished
  _, base = load_pretrained(adapted.model)
  jax.tree.map(np.testing.assert_array_equal, run.base, base)  # to the bit, after the updates
  # The reference of the KL term is the base itself, not a copy of it.
  same = jax.tree.map(lambda x, y: x is y, run.ref_params, run.base)
  assert all(jax.tree.leaves(same))
  stored = (folder / "checkpoints" / "2" / "state" / "_METADATA").read_text()
  assert "lora_a" in stored and "lora_b" in stored and "opt_state" in stored
  assert "kernel" not in stored and "embed" not in stored


def test_a_run_moves_from_the_base_and_says_how_far(finished):
  folder, _ = finished
  lines = read_metrics(folder / "metrics.jsonl")
  assert [line["step"] for line in lines] == [0, 1]
  # B starts at zero: the first sampler is the base, and A has no gradient yet.
  assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[1]["kl"] > 1e-5
  for line in lines:
    assert line["grad_norm"] > 0 and line["sampling/sampling_logp_difference/max"] < 1e-3
  assert json.loads((folder / "config.json").read_text())["lora_rank"] == 4


def test_the_adapters_are_saved_before_a_merged_model_and_that_only_on_demand(
  adapted, finished, tmp_path
):
  folder, _ = finished
  assert (folder / "adapter" / "adapter_model.safetensors").is_file()
  assert not (folder / "model").exists()
  other = tmp_path / "run"
  shutil.copytree(folder, other)
  shutil.rmtree(other / "adapter")
  (other / "model").write_text("in the way")
  with pytest.raises(FileExistsError):
    train(dataclasses.replace(adapted, run_dir=str(other), save_merged=True))
  for file in (folder / "adapter").iterdir():
    assert (other / "adapter" / file.name).read_bytes() == file.read_bytes()


def test_the_exports_are_the_base_with_the_change(adapted, finished, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(finished[0], folder)
  train(dataclasses.replace(adapted, run_dir=str(folder), save_merged=True))
  config, base = load_pretrained(adapted.model)
  adapters, lora = load_adapters(folder / "adapter", config)
  assert (lora.rank, lora.alpha, lora.targets) == (4, 32.0, ("q", "v", "down"))
  _, merged = load_pretrained(folder / "model")
  adapted = attach(base, adapters, lora)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), merged, merge(adapted))
  for target in ("k", "gate"):  # these have no adapters
    kernel = lambda params, target=target: params["layers"][target]["kernel"]
    np.testing.assert_array_equal(kernel(merged), kernel(base))
  tokens = jnp.arange(20)[None]
  logits = lambda params: forward(config, params, tokens, jnp.ones_like(tokens))
  np.testing.assert_allclose(logits(merged), logits(adapted), atol=1e-4)
  assert np.abs(logits(merged) - logits(base)).max() > 0.01


def test_a_continued_run_ends_as_one_that_never_stopped(adapted, finished, tmp_path):
  folder, _ = finished
  other = tmp_path / "run"
  shutil.copytree(folder, other)
  for lost in ("checkpoints/2", "adapter"):  # back to the end of the first step
    shutil.rmtree(other / lost)
  config = dataclasses.replace(adapted, run_dir=str(other))
  with pytest.raises(ValueError, match=r"lora_rank \(4 then, 0 now\)"):
    train(dataclasses.replace(config, lora_rank=0, lora_targets=RunConfig.lora_targets))
  assert train(config) == other
  for file in ("adapter/adapter_model.safetensors", "rollouts/step_000001.jsonl"):
    assert (other / file).read_bytes() == (folder / file).read_bytes(), file


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
  """The numbers of one LoRA step on one device and on eight, from a process with 8 CPU devices."""
  out = tmp_path_factory.mktemp("meshes") / "out.npz"
  script = Path(__file__).with_name("lora_mesh_step.py")
  done = subprocess.run(
    [sys.executable, str(script), str(out), ONE, SPLIT], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  with np.load(out) as found:
    return dict(found)


def test_a_step_is_the_same_on_eight_devices(steps):
  np.testing.assert_array_equal(steps[f"{SPLIT}/tokens"], steps[f"{ONE}/tokens"])
  scale = np.abs(steps[f"{ONE}/gradient"]).max()
  assert scale > 0.01
  for name in ("logp", "gradient", "params", "metrics"):
    np.testing.assert_allclose(
      steps[f"{SPLIT}/{name}"],
      steps[f"{ONE}/{name}"],
      rtol=1e-5,
      atol=1e-5 * max(scale, 1),
      err_msg=name,
    )


def test_adapters_are_split_as_their_kernels_are(steps):
  # gate [32, 48] has A [32, r] over fsdp and B [r, 48] over tensor; down has them the other way.
  np.testing.assert_allclose(steps[f"{SPLIT}/shares"], [1 / 2] * 4)
  assert steps[f"{SPLIT}/base_share"] == 1 / 4
