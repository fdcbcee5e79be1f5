"""Compares the log-probs of this machine's device with those of float32 on its CPU.

    python experiments/check_parity.py --shape=Q --dtype=bfloat16

A policy with random weights answers random prompts of different lengths. The completions are scored
as training scores them: on the device in the compute dtype, on the device in float32, and on the
CPU in float32. The log-probs that the sampler gave out are compared with the trainer's, too.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from grpo_jax import command_line
from grpo_jax.benchmarking.shapes import SHAPES, Workload, read_shape
from grpo_jax.config import RunConfig, SamplingConfig
from grpo_jax.models import DecoderConfig, Params, completion_logprobs, init_params
from grpo_jax.report.tables import Row, as_text
from grpo_jax.sampling import pad_to_bucket, sample_program
from grpo_jax.sharding import make_mesh
from grpo_jax.types import Rollout

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
command_line.define(Workload)
command_line.define(RunConfig, ["dtype", "seed"])
flags.DEFINE_string("shape", "S", f"{', '.join(SHAPES)} or a Hugging Face config.json")
flags.DEFINE_string("json", None, "where the figures go, too")


@command_line.script()
def main(argv: list[str]) -> None:
  config = read_shape(FLAGS.shape, FLAGS.dtype)
  load = command_line.read(Workload)
  found = compare(config, load, FLAGS.seed)
  header: Row = ("log-probs", "mean |difference|", "largest")
  rows = [(name, f"{mean:.2e}", f"{most:.2e}") for name, (mean, most) in found.items()]
  device = jax.devices()[0]
  print(
    f"{FLAGS.shape}, {FLAGS.dtype}, {device.device_kind}\n{as_text(header, rows, grouped=False)}"
  )
  if FLAGS.json:
    record = {"device": device.device_kind, "shape": FLAGS.shape, "differences": found}
    Path(FLAGS.json).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def compare(config: DecoderConfig, load: Workload, seed: int) -> dict[str, tuple[float, float]]:
  """Mean and largest absolute differences over the sampled tokens, in nats, by what is compared."""
  params, rng = peaked_params(config, jax.random.key(seed)), np.random.default_rng(seed)
  lengths = rng.integers(load.prompt_tokens // 2, load.prompt_tokens + 1, load.prompts)
  prompts = pad_to_bucket(
    [rng.integers(3, config.vocab_size, n).tolist() for n in lengths], 0, [load.prompt_tokens]
  )
  sampling = SamplingConfig(load.group_size, load.completion_tokens)
  sample = sample_program(config, make_mesh("data:1,fsdp:1,tensor:1"), sampling)
  rollout = sample(params, None, prompts, jax.random.key(seed))
  trained = scores(config, params, rollout)
  wide = dataclasses.replace(config, dtype="float32")
  with jax.default_matmul_precision("highest"):
    on_device = scores(wide, params, rollout)
  with jax.default_device(jax.devices("cpu")[0]):
    on_cpu = scores(wide, jax.device_get(params), jax.device_get(rollout))
  half = config.dtype
  pairs = {
    f"trainer in {half}, CPU in float32": (trained, on_cpu),
    "trainer in float32, CPU in float32": (on_device, on_cpu),
    f"sampler and trainer in {half}": (np.asarray(rollout.logp), trained),
  }
  real = np.asarray(rollout.loss_mask)
  gap = lambda a, b: np.abs(a - b)[real]
  return {name: (float(gap(*p).mean()), float(gap(*p).max())) for name, p in pairs.items()}


def peaked_params(config: DecoderConfig, key: jax.Array) -> Params:
  """Random float32 weights whose distributions are far from uniform: scaled by their fan-in."""

  def scaled(path: Any, x: jax.Array) -> jax.Array:
    if path[-1].key in ("scale", "bias"):
      return x
    width = config.hidden_size if path[-1].key == "embedding" else x.shape[-2]
    return x * (2.0 if path[0].key in ("embed", "head") else 1.0) / (0.02 * width**0.5)

  draw = lambda key: jax.tree_util.tree_map_with_path(scaled, init_params(config, key))
  return jax.jit(draw)(key)


def scores(config: DecoderConfig, params: Params, rollout: Rollout) -> np.ndarray:
  """Log-probs [P, G, T] float32 as training computes them."""

  @jax.jit
  def score(params: Params, rollout: Rollout) -> jax.Array:
    prompts = rollout.prompts
    each = lambda piece: completion_logprobs(config, params, *piece).logp
    one_at_a_time = jax.tree.map(
      lambda x: jnp.asarray(x)[:, None], (prompts.tokens, prompts.mask, rollout.tokens)
    )
    return jax.lax.map(each, one_at_a_time).reshape(rollout.tokens.shape)

  return np.asarray(score(params, rollout))


if __name__ == "__main__":
  app.run(main)
