"""Times one GRPO step and compares it with what the machine could do, and with other programs.

    python experiments/benchmark.py --shape=S
    python experiments/benchmark.py --shape=S --compare=trl,tunix
    python experiments/benchmark.py --shape=model/config.json --prompt_tokens=1024 --profile
    python experiments/benchmark.py --realistic --compare=trl,tunix

Weights and prompts are random, and every completion runs to its full length, so that the work is
fixed. Programs that are compared take turns, step by step, on the same machine. The floor is the
time that the step's matrix products and memory traffic take at the rates measured here.

With --realistic the embedded policy answers real tool-calling prompts of different lengths, answers
end at their stop token, and what counts is useful tokens a second.
"""

import importlib.metadata
import os
import statistics
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from grpo_jax import command_line
from grpo_jax.benchmarking.floor import floor_of, measure_rates
from grpo_jax.benchmarking.flops import step_work
from grpo_jax.benchmarking.peers import PEERS, PeerProcess, prepare_environment, write_work
from grpo_jax.benchmarking.profiling import phase_table, trace
from grpo_jax.benchmarking.shapes import SHAPES, Workload, read_shape
from grpo_jax.benchmarking.timing import Timed, TimedStep, peak_memory_gib, process_age, spread
from grpo_jax.benchmarking.work import RandomWork, ToolWork, Work
from grpo_jax.config import RunConfig, read_preset
from grpo_jax.files.atomic import write_json
from grpo_jax.models import LoraConfig
from grpo_jax.report.tables import Row, as_text
from grpo_jax.report.templates import TEMPLATES
from grpo_jax.runs.installation import git_commit

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
command_line.define(Workload)
command_line.define(RunConfig, ["micro_batch_prompts", "lora_rank", "dtype", "seed"])
flags.DEFINE_string("shape", "S", f"{', '.join(SHAPES)} or a Hugging Face config.json")
flags.DEFINE_bool(
  "realistic", False, "real prompts, a policy that knows how to answer and to stop; 12 --prompts"
)
flags.DEFINE_integer("steps", 5, "timed steps of each program, after one to warm up", lower_bound=1)
flags.DEFINE_list("compare", [], f"also time: {', '.join(PEERS)}")
flags.DEFINE_string("environments", ".benchmark", "environments of --compare")
flags.DEFINE_string(
  "peer_python", None, "an interpreter that has what --compare needs, instead of environments"
)
flags.DEFINE_bool("profile", False, "trace two more steps into a folder beside the JSON")
flags.DEFINE_string("json", None, "where the figures go; default: below runs/benchmark")
flags.DEFINE_alias("out", "json")


@command_line.script(RuntimeError)
def main(argv: list[str]) -> None:
  if FLAGS.lora_rank and "tunix" in FLAGS.compare:
    raise ValueError("--compare=tunix does not go with --lora_rank: its runner has no adapters")
  if unknown := set(FLAGS.compare) - set(PEERS):
    raise ValueError(f"--compare={unknown.pop()}; expected some of {', '.join(PEERS)}")
  if FLAGS.realistic and not FLAGS["prompts"].present:
    FLAGS["prompts"].value = read_preset("tiny")["prompts_per_step"]
  command_line.check()
  load = command_line.read(Workload)
  if FLAGS.micro_batch_prompts and load.prompts % FLAGS.micro_batch_prompts:
    raise ValueError("--micro_batch_prompts must divide --prompts")
  benchmark(chosen_work(load))


def chosen_work(load: Workload) -> Work:
  """The work that the flags describe."""
  if not FLAGS.realistic:
    return RandomWork(read_shape(FLAGS.shape, FLAGS.dtype), load, FLAGS.seed)
  for name in ("shape", "prompt_tokens"):
    if FLAGS[name].present:
      raise ValueError(f"--{name} does not go with --realistic: its model and prompts are given")
  steps = FLAGS.steps + 3  # one to warm up, two to profile
  return ToolWork(load, steps, FLAGS.dtype, FLAGS.seed)


def benchmark(work: Work) -> None:
  """Measures, prints and writes."""
  shape = "realistic" if FLAGS.realistic else FLAGS.shape
  out = Path(FLAGS.json or f"runs/benchmark/{Path(shape).stem}.json")
  ours = TimedStep(work, FLAGS.micro_batch_prompts, seed=FLAGS.seed, lora=adapters())
  ours.run()
  first_step = process_age()
  if FLAGS.realistic:  # each step may have another shape, and the first run of a program is slower
    for _ in range(FLAGS.steps):
      ours.run()
    ours.step = 1
  times = []
  for number in range(FLAGS.steps):
    times.append(ours.run())
    print(f"ours {times[-1].total:.2f} s  [{number + 1}/{FLAGS.steps}]", flush=True)
  found = figures(times, peak_memory_gib())
  found |= {"compile_seconds": ours.compile_seconds, "first_step_at_seconds": first_step}
  if FLAGS.profile:
    found["profile"] = profile(ours, out.with_suffix(""))
  found["peers"] = {peer: take_turns(peer, work, ours, out) for peer in FLAGS.compare}
  if isinstance(work, RandomWork):  # only then the work is known beforehand
    found |= against_floor(work, found["total_seconds"]["median"])
  record = {
    "shape": shape,
    "workload": vars(work.load),
    "temperature": work.temperature,
    "dtype": work.config.dtype,
    "lora_rank": FLAGS.lora_rank,
    "micro_batch_prompts": FLAGS.micro_batch_prompts,
    "steps": FLAGS.steps,
    "seed": FLAGS.seed,
    **found,
    "git_commit": git_commit(),
    "packages": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    "cpus": os.cpu_count(),
    "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
  }
  write_json(out, record)
  show(record, out)


def figures(times: list[Timed], peak_gib: float) -> dict[str, Any]:
  """The figures of our steps."""
  return {
    **rates_of([step._asdict() for step in times]),
    "cpu_seconds": spread([step.cpu for step in times]),
    "foreign_cpu_share": spread([step.foreign for step in times]),
    "equal_groups": statistics.mean(step.equal_groups for step in times),
    "decoded_rows": statistics.mean(step.decoded for step in times),
    "peak_memory_gib": peak_gib,
  }


def rates_of(steps: list[dict[str, float]]) -> dict[str, Any]:
  """Seconds by phase and tokens a second of a program's steps; padding is no token."""
  per_second = lambda phase: statistics.median(step["tokens"] / step[phase] for step in steps)
  phases = ("sample", "update", "total")
  return {
    **{f"{phase}_seconds": spread([step[phase] for step in steps]) for phase in phases},
    "tokens": statistics.mean(step["tokens"] for step in steps),
    "tokens_per_second": per_second("total"),
    "sample_tokens_per_second": per_second("sample"),
  }


def adapters() -> LoraConfig | None:
  """The adapters that are trained; None where the whole model is."""
  return LoraConfig(FLAGS.lora_rank) if FLAGS.lora_rank else None


def against_floor(work: RandomWork, seconds: float) -> dict[str, Any]:
  """The work, with and without sharing the prompt, and what it takes at the measured rates."""
  rates = measure_rates(work.config, work.load)
  shared, repeated = (
    step_work(work.config, work.load, shared=share, lora=adapters()) for share in (True, False)
  )
  floor, without = floor_of(shared, rates), floor_of(repeated, rates)
  return {
    "flops": shared.flops,
    "flops_without_sharing": repeated.flops,
    "rates": rates._asdict(),
    "floor_seconds": floor.total,
    "floor_sample_seconds": floor.sample,
    "floor_update_seconds": floor.update,
    "floor_without_sharing_seconds": without.total,
    "step_over_floor": seconds / floor.total,
  }


def profile(ours: TimedStep, folder: Path) -> str:
  """Traces two steps, prints and writes their seconds by phase."""
  with trace(folder):
    steps = [ours.run() for _ in range(2)]
  phases = [
    {
      "seconds/sample": step.sample,
      "seconds/update": step.update,
      "seconds/reward": step.total - step.sample - step.update,
    }
    for step in steps
  ]
  table = phase_table(phases)
  (folder / "seconds.txt").write_text(table + "\n", encoding="utf-8")
  print(f"two traced steps ({folder})\n{table}\n")
  return str(folder)


def take_turns(peer: str, work: Work, ours: TimedStep, out: Path) -> dict[str, Any]:
  """A peer's figures and how they compare with ours, measured in turns on the same prompts."""
  runners = Path(__file__).parent / "peers"
  environment = PEERS[peer]
  requirements = runners / f"{environment}.txt"
  python = FLAGS.peer_python or prepare_environment(
    peer, requirements, (Path(FLAGS.environments) / environment).absolute()
  )
  folder = out.with_suffix("") / peer
  folder.mkdir(parents=True, exist_ok=True)
  task = write_work(work, FLAGS.steps + 1, folder, FLAGS.micro_batch_prompts, adapters())
  mine, theirs = [], []
  command = [str(python), str((runners / f"{peer}_grpo.py").absolute())]
  ours.step = 1  # the prompts of the first step are those to warm up with
  with PeerProcess(command, task) as program:
    first = program.step()
    for number in range(FLAGS.steps):
      mine.append(ours.run())
      theirs.append(program.step())
      seconds = f"{peer} {theirs[-1]['total']:.2f} s, ours {mine[-1].total:.2f} s"
      print(f"{seconds}  [{number + 1}/{FLAGS.steps}]", flush=True)
  expected = work.load.tokens
  if not work.stop_ids and any(step["tokens"] != expected for step in theirs):
    raise RuntimeError(f"{peer} sampled {theirs[0]['tokens']} tokens instead of {expected}")
  own, found = figures(mine, peak_memory_gib()), rates_of(theirs)
  return {
    **found,
    "first_step_seconds": program.ready_seconds + first["total"],
    "peak_memory_gib": theirs[-1]["peak_memory_gib"],
    "ours": own,
    "times_slower": own["tokens_per_second"] / found["tokens_per_second"],
    "requirements": None if FLAGS.peer_python else requirements.read_text("utf-8").split(),
  }


def show(record: dict[str, Any], out: Path) -> None:
  """Prints what was measured."""
  header: Row = ("program", "sample s", "update s", "step s [least, most]", "useful tokens/s",
                 "peak GiB", "ours / its tokens/s")  # fmt: skip
  row = lambda name, found, ratio: (
    name,
    *(f"{found[f'{part}_seconds']['median']:.3f}" for part in ("sample", "update")),
    "{median:.3f} [{min:.3f}, {max:.3f}]".format(**found["total_seconds"]),
    f"{found['tokens_per_second']:.0f}",
    f"{found['peak_memory_gib']:.2f}",
    ratio,
  )
  rows = [row("grpo_jax", record, "")]
  for peer, found in record["peers"].items():
    rows.append(row(peer, found, f"{found['times_slower']:.2f}"))
    rows.append(row("  grpo_jax, in turns", found["ours"], "1.00"))
  table = as_text(header, rows, grouped=False)
  print(TEMPLATES.get_template("benchmark.txt.j2").render(record, table=table, out=out))


if __name__ == "__main__":
  app.run(main)
