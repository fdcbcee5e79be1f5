"""Shows whether a GRPO step fits a machine, and how fast it could be, before anyone pays for it.

    python experiments/plan.py --model=qwen2.5-7b --topology=v5e:4x4 --mesh=fsdp:16 \\
      --prompts_per_step=16 --group_size=8 --max_prompt_tokens=512 --max_completion_tokens=128 \\
      --dtype=bfloat16 --remat=layers

With several models, machines or ranks of adapters, separated by commas, it prints a table of all
their combinations. `--json=FOLDER` then keeps each plan, and a second call makes only new ones.

Needs no accelerator and no weights. For TPUs the real programs are compiled (with libtpu:
`pip install 'grpo_jax[plan]'`); for GPUs they are traced, and memory is estimated.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, get_args

from absl import app, flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the machine that plans need not have a device

from grpo_jax.grpo import GRPOConfig
from grpo_jax.models import DecoderConfig, LoraConfig, Remat, config_named
from grpo_jax.models.lora import TARGETS
from grpo_jax.optimizers import Optimizer
from grpo_jax.planner import Job, Plan, describe, gpu_share, make_plan, parse_topology, plan_mesh
from grpo_jax.planner.report import as_record
from grpo_jax.planner.table import plan_rows
from grpo_jax.sampling import SamplingConfig
from grpo_jax.tables import as_markdown

FLAGS: Any = flags.FLAGS  # flags have their types at run time only

flags.DEFINE_list(
  "model", ["qwen2.5-7b"], "qwen2.5-SIZE, a hub id, a checkpoint folder or a config.json"
)
flags.DEFINE_list("topology", ["v5e:4x4"], "CHIP:SHAPE, such as v5e:4x4, v5p:2x2x4 or h100:8")
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
flags.DEFINE_enum(
  "remat",
  "none",
  get_args(Remat),
  "what the backward pass computes again instead of keeping it: nothing, all of a layer but its "
  "products with weights, or all of it; less memory, more time",
)
flags.DEFINE_bool(
  "gather_weights", True, "sample with weights whole along fsdp: memory for sending them per token"
)
flags.DEFINE_list(
  "lora_rank", ["0"], "train adapters of this rank on the frozen model; 0: the whole model"
)
flags.DEFINE_list("lora_targets", list(TARGETS), "linear layers with adapters")
flags.DEFINE_enum("optimizer", "adamw", get_args(Optimizer), "its state is part of the memory")
flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "compute dtype")
flags.DEFINE_bool("largest", True, "find the largest batch that fits")
flags.DEFINE_string(
  "json", "", "also write the numbers to this file; of several plans, to a folder of one file each"
)

SHARED = (
  "mesh", "prompts_per_step", "group_size", "micro_batch_prompts", "minibatches", "inner_updates",
  "max_prompt_tokens", "max_completion_tokens", "kl_weight", "remat", "gather_weights",
  "lora_targets", "optimizer", "dtype", "largest",
)  # fmt: skip


def settings() -> list[dict[str, Any]]:
  """All flags of each plan: every combination of a model, what is trained, and a machine."""
  shared = {name: FLAGS[name].value for name in SHARED} | {"gpu_share": gpu_share()}
  return [
    {"model": model, "lora_rank": rank, "topology": topology, **shared}
    for model in FLAGS.model
    for rank in ranks()
    for topology in FLAGS.topology
  ]


def ranks() -> list[int]:
  """The ranks of `--lora_rank`."""
  if not all(rank.isdigit() for rank in FLAGS.lora_rank):
    raise ValueError(f"--lora_rank={','.join(FLAGS.lora_rank)} must be ranks, 0 for none, as 0,16")
  return [int(rank) for rank in FLAGS.lora_rank]


def job_of(given: dict[str, Any]) -> Job:
  """One plan's flags as one checked job."""
  policy: DecoderConfig = dataclasses.replace(config_named(given["model"]), dtype=given["dtype"])
  sampling = SamplingConfig(
    group_size=given["group_size"], max_tokens=given["max_completion_tokens"]
  )
  numbers = (
    "kl_weight", "inner_updates", "minibatches", "micro_batch_prompts", "remat", "gather_weights",
  )  # fmt: skip
  rank = given["lora_rank"]
  return Job(
    policy,
    plan_mesh(given["mesh"], parse_topology(given["topology"])),
    GRPOConfig(sampling=sampling, **{name: given[name] for name in numbers}),
    given["prompts_per_step"],
    given["max_prompt_tokens"],
    LoraConfig(rank, targets=tuple(given["lora_targets"])) if rank else None,
    given["optimizer"],
  )


def plan_one(given: dict[str, Any], job: Job, file: Path | None) -> tuple[Plan, dict[str, Any]]:
  """Makes one plan and writes its record, if to anywhere."""
  plan = make_plan(
    job,
    parse_topology(given["topology"]),
    largest=given["largest"],
    log=lambda line: print(line, file=sys.stderr),
  )
  record = {"settings": given, **as_record(plan)}
  if file:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
  return plan, record


def plan_all(several: list[dict[str, Any]], folder: Path | None) -> list[dict[str, Any]]:
  """The records of all plans; those of the same flags that lie in the folder are not made again."""
  jobs = [job_of(given) for given in several]  # what is wrong with any is said before any work
  records = []
  for given, job in zip(several, jobs, strict=True):
    name = "{model} {lora_rank} {topology}".format_map(given)
    file = folder / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}.json" if folder else None
    kept = json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else {}
    print(f"{name}: {'kept' if kept.get('settings') == given else 'planning'}", file=sys.stderr)
    records.append(kept if kept.get("settings") == given else plan_one(given, job, file)[1])
  return records


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  path = Path(FLAGS.json) if FLAGS.json else None
  try:
    several = settings()
    if len(several) > 1:
      print(as_markdown(*plan_rows(plan_all(several, path))))
    else:
      print(describe(plan_one(several[0], job_of(several[0]), path)[0]))
  except (ValueError, OSError) as error:
    sys.exit(f"plan: {error}")


if __name__ == "__main__":
  app.run(main)
