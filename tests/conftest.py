"""What several test files share: how programs are compiled, and one tiny decoder."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil

import pytest

# Compiling is most of the suite's work, and the sizes are so small that good machine code does not
# pay for itself. Set before JAX starts, for child processes too. `test_digest.py` compiles as users
# do, and says whether the numbers are the same to the bit.
FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # newer ones do not know the flag
  FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()

# Workers take whole files: what takes long must not come last.
LONGEST = (
  "test_hosts.py", "test_interruptions.py", "test_sweeps.py", "test_sampling.py", "test_digest.py",
  "test_lora_run.py", "test_results.py", "test_version_0_1.py", "test_benchmark.py",
  "test_sharding.py",
  "test_evaluate.py", "test_refusals.py", "test_chat.py", "test_grpo.py", "test_growth.py",
  "test_training.py", "test_plan.py", "test_bad_steps.py", "test_replay.py", "test_damage.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
  """Puts the longest files first; the order within a file stays."""
  place = {name: n for n, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
  """The settings of the small run that several files train, with its model and data."""
  from small_run import small_run

  return small_run(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def whole(settings, tmp_path_factory):
  """The folder of that run, which nothing disturbed; not to be written to."""
  from grpo_jax.train import train

  return train(dataclasses.replace(settings, run_dir=str(tmp_path_factory.mktemp("whole") / "run")))


@pytest.fixture
def copied(whole, settings, tmp_path):
  """A copy of the finished run, as a folder to damage, and the settings that go on with it."""
  shutil.copytree(whole, tmp_path / "run")
  return tmp_path / "run", dataclasses.replace(settings, run_dir=str(tmp_path / "run"))


@pytest.fixture(scope="session")
def tiny():
  """A float32 decoder (2 layers, width 32, 4 query heads on 2 key/value heads, 67 tokens) and its
  parameters: kernels scaled by their fan-in, so that its distributions are far from uniform, and
  random biases and norms, so that none of them can be left out unseen.
  """
  import jax

  from grpo_jax.models import DecoderConfig, init_params

  config = DecoderConfig(67, 32, 48, 2, 4, 2, 8)
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  keys = iter(jax.random.split(jax.random.key(7), len(jax.tree.leaves(shapes))))

  def draw(path, leaf):
    noise = jax.random.normal(next(keys), leaf.shape)
    if path[-1].key == "scale":
      return 0.8 + 0.3 * noise
    if path[-1].key == "bias":
      return 0.3 * noise
    # Head: wide enough for peaked distributions. Embedding rows have length about one an entry.
    scale = {"embed": 1.0, "head": 2.0 * leaf.shape[0] ** -0.5}.get(path[0].key)
    return (leaf.shape[-2] ** -0.5 if scale is None else scale) * noise

  return config, jax.tree_util.tree_map_with_path(draw, shapes)
