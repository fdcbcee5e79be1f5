"""Runs that version 0.1 began go on: their checkpoints hold each layer for itself.

`fixtures/version_0_1` holds two runs of 0.1, `full` and `lora`, as they stood after two of their
four steps, but with the metrics of all four.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.config import OptimizerConfig, config_of
from grpo_jax.models import DecoderConfig, LoraConfig, init_adapters, init_params
from grpo_jax.optimizers import make_optimizer
from grpo_jax.replay import replay
from grpo_jax.report.page import write_report
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.runs.trackers import read_metrics
from grpo_jax.train import train
from grpo_jax.types import TrainState

FIXTURE = Path(__file__).parent / "fixtures" / "version_0_1"
TIMES = ("seconds/", "step_time", "tokens_per_second")


@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_run_of_0_1_goes_on_as_it_would_have(run, tmp_path, monkeypatch):
  shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
  monkeypatch.chdir(tmp_path)
  metrics = tmp_path / run / "metrics.jsonl"
  recorded = read_metrics(metrics)
  assert len(recorded) == 4
  metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
  train(config_of(json.loads((tmp_path / run / "config.json").read_text())))
  found = read_metrics(metrics)
  assert found[:2] == recorded[:2]
  for line, wanted in zip(found[2:], recorded[2:], strict=True):
    for name in (name for name in wanted if not name.startswith(TIMES)):
      # Other orders of summation leave a few units in the last place of float32.
      assert line[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), (line["step"], name)


@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_step_of_0_1_is_replayed_and_reported(run, tmp_path, monkeypatch):
  shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
  monkeypatch.chdir(tmp_path)
  for step, start in ((0, 0), (3, 2)):
    found = replay(run, step)
    assert (found.start, found.recorded_by) == (start, "0.1")
    assert all(found.equal.values()) and 0 < found.difference < 1e-5, found
  write_report(Path(run))
  assert "kl" in (tmp_path / run / "report.md").read_text()


def apart(tree):
  """A tree of dicts as 0.1 laid it out, from the stacked one."""
  layers = tree.pop("layers")
  count = jax.tree.leaves(layers)[0].shape[0]
  return tree | {f"layers_{n}": jax.tree.map(lambda x, n=n: x[n], layers) for n in range(count)}


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("adapters", [False, True])
def test_every_state_of_0_1_is_stacked(optimizer, adapters, tmp_path):
  config = DecoderConfig(32, 128, 160, 11, 2, 1, 64)  # sides that Adafactor factors; layers_10
  tx = make_optimizer(OptimizerConfig(optimizer=optimizer), lambda count: 0.1)
  key = jax.random.key(0)
  lora = LoraConfig(2, targets=("q", "down"))
  params = init_adapters(config, lora, key) if adapters else init_params(config, key)
  grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
  _, opt_state = jax.jit(tx.update)(grads, tx.init(params), params)
  is_tree = lambda x: isinstance(x, dict)
  old = jax.tree.map(
    lambda x: apart(dict(x)) if is_tree(x) else x, (params, opt_state), is_leaf=is_tree
  )
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(TrainState(*old, jnp.int32(3), key), {})
    checkpoints.wait()
    like = TrainState(params, opt_state, jnp.int32(0), key)
    found, _ = checkpoints.restore(3, jax.tree.map(jnp.copy, like))
  assert jax.tree.structure(found) == jax.tree.structure(like) and int(found.step) == 3
  jax.tree.map(np.testing.assert_array_equal, (found.params, found.opt_state), (params, opt_state))
