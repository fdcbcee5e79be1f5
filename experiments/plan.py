"""Shows whether a GRPO step fits a machine, and how fast it could be, before anyone pays for it.

    python experiments/plan.py --model=qwen2.5-7b --topology=v5e:4x4 --mesh=fsdp:16 \\
      --prompts_per_step=16 --group_size=8 --max_prompt_tokens=512 --max_completion_tokens=128 \\
      --dtype=bfloat16 --remat

Needs no accelerator and no weights. For TPUs the real programs are compiled (with libtpu:
`pip install 'grpo_jax[plan]'`); for GPUs they are traced, and memory is estimated.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, get_args

from absl import app, flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the machine that plans need not have a device

from grpo_jax.grpo import GRPOConfig
from grpo_jax.models import DecoderConfig, LoraConfig, config_named
from grpo_jax.models.lora import TARGETS
from grpo_jax.optimizers import Optimizer
from grpo_jax.planner import Job, describe, make_plan, parse_topology, plan_mesh
from grpo_jax.planner.report import as_record
from grpo_jax.sampling import SamplingConfig

FLAGS: Any = flags.FLAGS  # flags have their types at run time only

flags.DEFINE_string(
  "model", "qwen2.5-7b", "qwen2.5-SIZE, a hub id, a checkpoint folder or a config.json"
)
flags.DEFINE_string("topology", "v5e:4x4", "CHIP:SHAPE, such as v5e:4x4, v5p:2x2x4 or h100:8")
flags.DEFINE_string("mesh", "fsdp:-1", "devices by axis (data, fsdp, tensor); -1: the rest")
flags.DEFINE_integer("prompts_per_step", 16, "prompts a step")
flags.DEFINE_integer("group_size", 8, "candidates sampled for each prompt (G)")
flags.DEFINE_integer(
  "micro_batch_prompts", 0, "prompts in one backward pass; 0: all of a minibatch"
)
flags.DEFINE_integer("minibatches", 1, "optimizer steps a pass over the batch")
flags.DEFINE_integer("inner_updates", 1, "passes over each batch of completions (mu)")
flags.DEFINE_integer("max_prompt_tokens", 512, "prompts are planned at this length, tokens")
flags.DEFINE_integer("max_completion_tokens", 128, "completions are planned at this length, tokens")
flags.DEFINE_float("kl_weight", 0.0, "weight of the KL to the start; not 0: the start is held too")
flags.DEFINE_bool("remat", False, "recompute layers in the backward pass: less memory, more time")
flags.DEFINE_bool(
  "gather_weights", True, "sample with weights whole along fsdp: memory for sending them per token"
)
flags.DEFINE_integer(
  "lora_rank", 0, "train adapters of this rank on the frozen model; 0: the whole model"
)
flags.DEFINE_list("lora_targets", list(TARGETS), "linear layers with adapters")
flags.DEFINE_enum("optimizer", "adamw", get_args(Optimizer), "its state is part of the memory")
flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "compute dtype")
flags.DEFINE_list(
  "depths", [], "compile decoders of these two depths and extrapolate, such as 2,4; none: the whole"
)
flags.DEFINE_bool("largest", True, "find the largest batch that fits")
flags.DEFINE_string("json", "", "also write the numbers to this file")


def depths() -> tuple[int, int] | None:
  """The two depths of `--depths`, or None."""
  if not FLAGS.depths:
    return None
  if len(FLAGS.depths) != 2 or not all(d.isdigit() and int(d) > 0 for d in FLAGS.depths):
    raise ValueError(f"--depths={','.join(FLAGS.depths)} must be two numbers of layers, as 2,4")
  small, large = sorted(int(depth) for depth in FLAGS.depths)
  if small == large:
    raise ValueError(f"--depths={','.join(FLAGS.depths)} must be two different depths")
  return small, large


def job() -> Job:
  """The flags as one checked job."""
  topology = parse_topology(FLAGS.topology)
  policy: DecoderConfig = dataclasses.replace(config_named(FLAGS.model), dtype=FLAGS.dtype)
  grpo = GRPOConfig(
    sampling=SamplingConfig(group_size=FLAGS.group_size, max_tokens=FLAGS.max_completion_tokens),
    **{
      name: FLAGS[name].value
      for name in (
        "kl_weight",
        "inner_updates",
        "minibatches",
        "micro_batch_prompts",
        "remat",
        "gather_weights",
      )
    },
  )
  return Job(
    policy,
    plan_mesh(FLAGS.mesh, topology),
    grpo,
    FLAGS.prompts_per_step,
    FLAGS.max_prompt_tokens,
    LoraConfig(FLAGS.lora_rank, targets=tuple(FLAGS.lora_targets)) if FLAGS.lora_rank else None,
    FLAGS.optimizer,
  )


def main(_) -> None:
  try:
    plan = make_plan(
      job(),
      parse_topology(FLAGS.topology),
      depths=depths(),
      largest=FLAGS.largest,
      log=lambda line: print(line, file=sys.stderr),
    )
  except (ValueError, OSError) as error:
    sys.exit(f"plan: {error}")
  print(describe(plan))
  if FLAGS.json:
    Path(FLAGS.json).write_text(json.dumps(as_record(plan), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
  app.run(main)
