"""Shows whether a GRPO step fits a machine, and how fast it could be, before anyone pays for it.

    python experiments/plan.py --model=qwen2.5-7b --topology=v5e:4x4 --mesh=fsdp:16 \\
      --prompts_per_step=16 --group_size=8 --max_prompt_tokens=512 --max_completion_tokens=128 \\
      --dtype=bfloat16 --remat=layers

Takes the flags of experiments/train_grpo.py; prompts and completions are planned at their greatest
lengths. With several models, machines or ranks of adapters, separated by commas, it prints a table
of all their combinations. `--json=FOLDER` then keeps each plan, and a second call makes only new
ones.

Needs no accelerator and no weights. For TPUs the real programs are compiled (with libtpu:
`pip install 'grpo_jax[plan]'`); for GPUs they are traced, and memory is estimated.
"""

import dataclasses
import itertools
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the machine that plans need not have a device

from grpo_jax import command_line
from grpo_jax.config import RunConfig
from grpo_jax.files.atomic import write_json
from grpo_jax.models import config_named
from grpo_jax.planner import Job, Plan, describe, gpu_share, make_plan, parse_topology, plan_mesh
from grpo_jax.planner.report import as_record, plan_rows
from grpo_jax.report.tables import as_markdown
from grpo_jax.settings import settings_of

FLAGS: Any = flags.FLAGS  # flags have their types at run time only

command_line.define(
  RunConfig,
  without=["model", "lora_rank"],
  mesh="fsdp:-1",
  prompts_per_step=16,
  micro_batch_prompts=0,
  max_prompt_tokens=512,
  max_completion_tokens=128,
  dtype="bfloat16",
)
command_line.define(RunConfig, [], axes=True, lora_rank=["0"])
flags.DEFINE_list(
  "model", ["qwen2.5-7b"], "qwen2.5-SIZE, a hub id, a checkpoint folder or a config.json"
)
flags.DEFINE_list("topology", ["v5e:4x4"], "CHIP:SHAPE, such as v5e:4x4, v5p:2x2x4 or h100:8")
flags.DEFINE_bool("largest", True, "find the largest batch that fits")
flags.DEFINE_string(
  "json", "", "also write the numbers to this file; of several plans, to a folder of one file each"
)


class Wanted(NamedTuple):
  """One plan that is asked for: the training run and where it is to run."""

  config: RunConfig
  topology: str
  largest: bool
  gpu_share: float

  @property
  def name(self) -> str:
    """What tells it from the others, and its file from theirs."""
    return f"{self.config.model} {self.config.lora_rank} {self.topology}"

  def record(self) -> dict[str, Any]:
    """All that the plan depends on, as JSON has it."""
    return json.loads(json.dumps({**self._asdict(), "config": dataclasses.asdict(self.config)}))


def wanted_plans() -> list[Wanted]:
  """Every combination of a model, what is trained, and a machine."""
  # What belongs to adapters is for the plans that have some.
  adapters = {name for name, one in settings_of(RunConfig).items() if one.needs == "lora_rank"}
  found = []
  for model, rank, topology in itertools.product(
    FLAGS.model, command_line.axes()["lora_rank"], FLAGS.topology
  ):
    plain = {} if rank else {name: getattr(RunConfig, name) for name in adapters}
    config = command_line.read(RunConfig, run_dir="", model=model, lora_rank=rank, **plain)
    found.append(Wanted(config, topology, FLAGS.largest, gpu_share()))
  return found


def job_of(wanted: Wanted) -> Job:
  """One plan's settings as one checked job."""
  config = wanted.config
  dtype: Any = "bfloat16" if config.dtype == "auto" else config.dtype
  return Job(
    dataclasses.replace(config_named(config.model), dtype=dtype),
    plan_mesh(config.mesh, parse_topology(wanted.topology)),
    config.grpo,
    config.prompts_per_step,
    config.max_prompt_tokens,
    config.lora,
    config,
  )


def plan_one(wanted: Wanted, job: Job, file: Path | None) -> tuple[Plan, dict[str, Any]]:
  """Makes one plan and writes its record, if to anywhere."""
  plan = make_plan(
    job,
    parse_topology(wanted.topology),
    largest=wanted.largest,
    log=lambda line: print(line, file=sys.stderr),
  )
  record = {"settings": wanted.record(), **as_record(plan)}
  if file:
    write_json(file, record)
  return plan, record


def plan_all(several: list[Wanted], folder: Path | None) -> list[dict[str, Any]]:
  """The records of all plans; those of the same flags that lie in the folder are not made again."""
  jobs = [job_of(wanted) for wanted in several]  # what is wrong with any is said before any work
  records = []
  for wanted, job in zip(several, jobs, strict=True):
    name = wanted.name
    file = folder / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}.json" if folder else None
    kept = json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else {}
    same = kept.get("settings") == wanted.record()
    print(f"{name}: {'kept' if same else 'planning'}", file=sys.stderr)
    records.append(kept if same else plan_one(wanted, job, file)[1])
  return records


@command_line.script()
def main(argv: list[str]) -> None:
  path = Path(FLAGS.json) if FLAGS.json else None
  several = wanted_plans()
  if len(several) > 1:
    print(as_markdown(*plan_rows(plan_all(several, path))))
  else:
    print(describe(plan_one(several[0], job_of(several[0]), path)[0]))


if __name__ == "__main__":
  app.run(main)
