"""Compares the log-probs of this machine's device with those of float32 on its CPU.

    python experiments/check_parity.py --shape=Q --dtype=bfloat16
    python experiments/check_parity.py --model=Qwen/Qwen2.5-0.5B-Instruct --prompts=8 --group_size=4

A policy with random weights answers random prompts of different lengths, or `--model` those of
generated tool tasks. The completions are scored as training scores them: on the device in the
compute dtype, on the device in float32, and on the CPU in float32. The log-probs that the sampler
gave out are compared with the trainer's, too.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from grpo_jax import command_line
from grpo_jax.benchmarking.shapes import SHAPES, Workload, in_dtype, read_shape
from grpo_jax.config import RunConfig, SamplingConfig
from grpo_jax.models import (
  DecoderConfig,
  Params,
  completion_logprobs,
  init_params,
  load_pretrained,
)
from grpo_jax.report.tables import Row, as_text
from grpo_jax.sampling import pad_to_bucket, sample_program
from grpo_jax.sharding import make_mesh
from grpo_jax.tasks import generate, load_tokenizer, render, stop_token_ids
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.types import Rollout

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
command_line.define(Workload)
command_line.define(RunConfig, ["dtype", "seed"])
flags.DEFINE_string("shape", "S", f"{', '.join(SHAPES)} or a Hugging Face config.json")
flags.DEFINE_string("model", None, "a checkpoint, in place of --shape with random weights")
flags.DEFINE_string("json", None, "where the figures go, too")


@command_line.script()
def main(argv: list[str]) -> None:
  command_line.check()
  load = command_line.read(Workload)
  sampling = SamplingConfig(load.group_size, load.completion_tokens)
  if FLAGS.model:
    # float32 weights and a compute dtype, as in training.
    config, params = load_pretrained(FLAGS.model)
    config = in_dtype(config, FLAGS.dtype)
    prompts, stop_ids = tool_prompts(FLAGS.model, load, FLAGS.seed)
    sampling = dataclasses.replace(sampling, stop_ids=stop_ids, pad_id=config.pad_token_id or 0)
  else:
    config = read_shape(FLAGS.shape, FLAGS.dtype)
    params = peaked_params(config, jax.random.key(FLAGS.seed))
    prompts = random_prompts(config, load, FLAGS.seed)
  found, tokens = compare(config, params, prompts, load.prompt_tokens, sampling, FLAGS.seed)
  header: Row = ("log-probs", "mean |difference|", "largest")
  rows = [(name, f"{mean:.2e}", f"{most:.2e}") for name, (mean, most) in found.items()]
  device, shape = jax.devices()[0], FLAGS.model or FLAGS.shape
  print(
    f"{shape}, {config.dtype}, {device.device_kind}, {tokens:,} tokens after prompts of "
    f"{min(map(len, prompts))} to {max(map(len, prompts))}\n{as_text(header, rows, grouped=False)}"
  )
  if FLAGS.json:
    record = {"device": device.device_kind, "shape": shape, "differences": found}
    Path(FLAGS.json).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def random_prompts(config: DecoderConfig, load: Workload, seed: int) -> list[list[int]]:
  """Prompts of random tokens and different lengths."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(load.prompt_tokens // 2, load.prompt_tokens + 1, load.prompts)
  return [rng.integers(3, config.vocab_size, n).tolist() for n in lengths]


def tool_prompts(model: str, load: Workload, seed: int) -> tuple[list[list[int]], tuple[int, ...]]:
  """Generated tasks with their tools as a checkpoint's own template shows them; its stop tokens."""
  tokenizer = load_tokenizer(model)
  rows = generate(seed, "train", 20 * load.prompts, style="tools")
  every = [render(tokenizer, ToolTask.from_row(row)) for row in rows]
  prompts = [prompt for prompt in every if len(prompt) <= load.prompt_tokens][: load.prompts]
  if len(prompts) < load.prompts:
    raise ValueError(f"too few prompts have at most --prompt_tokens={load.prompt_tokens}")
  return prompts, tuple(stop_token_ids(tokenizer, model))


def compare(
  config: DecoderConfig,
  params: Params,
  token_ids: Sequence[Sequence[int]],
  length: int,
  sampling: SamplingConfig,
  seed: int,
) -> tuple[dict[str, tuple[float, float]], int]:
  """Mean and largest absolute differences over the sampled tokens, in nats, by what is compared.

  Args:
    config: of the decoder, with the compute dtype.
    params: float32 weights.
    token_ids: the prompts.
    length: all of them are padded to it, in tokens.
    sampling: how they are answered.
    seed: of the answers.

  Returns:
    The differences, and the number of tokens.
  """
  prompts = pad_to_bucket(token_ids, sampling.pad_id, [length])
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
  found = {name: (float(gap(*p).mean()), float(gap(*p).max())) for name, p in pairs.items()}
  return found, int(real.sum())


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
