"""Times our step: the functions that training compiles."""

import dataclasses
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.benchmarking.work import Work
from grpo_jax.config import GRPOConfig, OptimizerConfig, SamplingConfig
from grpo_jax.grpo import make_batch, resolve, step_key, update_program
from grpo_jax.losses import share_without_spread
from grpo_jax.models import LoraConfig, init_adapters
from grpo_jax.optimizers import make_optimizer, make_schedule
from grpo_jax.sampling import cut_to_bucket, pad_to_bucket, sample_program
from grpo_jax.sharding import make_mesh
from grpo_jax.types import Prompts, TrainState

LEARNING_RATE = 1e-6


class Timed(NamedTuple):
  """One step.

  Attributes:
    sample: seconds until the candidates were there.
    update: seconds from their rewards to the new parameters.
    total: seconds of the whole step, rewards included.
    cpu: CPU seconds of this process, all threads; what to compare on a machine that is not quiet.
    foreign: share of the machine's CPU time that other processes took meanwhile.
    tokens: sampled tokens, up to and with each candidate's stop token.
    decoded: rows times steps of the decoder, those of candidates that had ended among them.
    equal_groups: share of the groups whose rewards are all equal.
  """

  sample: float
  update: float
  total: float
  cpu: float
  foreign: float
  tokens: int
  decoded: int
  equal_groups: float


class TimedStep:
  """Our GRPO step, as training runs it, with its state.

  Prompts are padded to the bucket of the longest, and completions cut to that of theirs before the
  update; what must be compiled for a shape is compiled when it first occurs, outside of the clocks.

  Args:
    work: weights, prompts and rewards.
    micro_batch_prompts: prompts in a backward pass; 0 takes all at once.
    repeated: do the same work without the group as an axis: each candidate is a prompt of its own,
      and a backward pass takes as many of them. Advantages are then all 0, which saves nothing.
    seed: of the samples.
    lora: train adapters on the frozen model, in the compute dtype, instead of the whole model.

  Attributes:
    compile_seconds: of all programs so far, from the persistent cache when they are in it.
  """

  def __init__(
    self,
    work: Work,
    micro_batch_prompts: int = 1,
    repeated: bool = False,
    seed: int = 0,
    lora: LoraConfig | None = None,
  ) -> None:
    self.work, self.repeated, self.step, self.compile_seconds = work, repeated, 0, 0.0
    mesh, load = make_mesh("data:1,fsdp:1,tensor:1"), work.load
    sampling = SamplingConfig(load.group_size, load.completion_tokens, work.temperature)
    settings = GRPOConfig(sampling, micro_batch_prompts=micro_batch_prompts)
    settings = resolve(settings, work.config, mesh, work.stop_ids)
    sampling = settings.sampling
    if repeated:
      sampling = dataclasses.replace(sampling, group_size=1)
      rows = micro_batch_prompts * load.group_size
      settings = dataclasses.replace(settings, micro_batch_prompts=rows, skip_idle=False)
    tx = make_optimizer(OptimizerConfig(), make_schedule(LEARNING_RATE, 0))
    start = jax.jit(
      lambda params, key: TrainState(params, tx.init(params), jnp.int32(0), key), donate_argnums=0
    )
    self._base, params = None, work.params()
    if lora is not None:
      self._base = jax.tree.map(lambda x: x.astype(work.config.dtype), params)
      params = init_adapters(work.config, lora, jax.random.key(seed))
    self.state = jax.block_until_ready(start(params, jax.random.key(seed)))
    self._sample = sample_program(work.config, mesh, sampling, lora)
    self._settings = settings
    self._update = update_program(work.config, mesh, tx, settings, lora)
    self._compiled: dict[tuple[int, ...], Any] = {}

  def prompts(self) -> Prompts:
    """This step's prompts, on the host."""
    rows = self.work.prompts(self.step)
    if self.repeated:
      rows = [row for row in rows for _ in range(self.work.load.group_size)]
    return pad_to_bucket(rows, self._settings.sampling.pad_id, self.work.buckets)

  def run(self) -> Timed:
    """Takes one step and times it."""
    prompts = jax.block_until_ready(jax.device_put(self.prompts()))
    given: tuple[Any, ...] = (self.state.params, self._base, prompts, step_key(self.state))
    sample = self._program(self._sample.compile, given, prompts.tokens.shape)
    if self.work.stop_ids:  # smaller shapes are compiled when they occur
      jax.block_until_ready(sample(*given))
    began = _clocks()
    rollout, segments = jax.block_until_ready(sample.run(*given))
    sampled = _clocks()
    drawn = jax.device_get(rollout)
    rewards = self.work.rewards(self.step, drawn)
    longest = int(drawn.completion_mask.sum(-1).max())
    scored = _clocks()
    cut = cut_to_bucket(rollout, longest)
    batch = make_batch(cut, rewards, None, self._settings)
    compile_update = lambda *arguments: self._update.lower(*arguments).compile()
    update = self._program(
      compile_update, (self.state, batch, self._base), (*prompts.tokens.shape, *cut.tokens.shape)
    )
    ready = _clocks()
    cut = cut_to_bucket(rollout, longest)  # for the second time: now it is timed
    batch = make_batch(cut, rewards, None, self._settings)
    self.state, metrics = update(self.state, batch, self._base)
    jax.block_until_ready((self.state, metrics))
    ended = _clocks()
    self.step += 1
    total, busy, own = (scored - began) + (ended - ready)
    return Timed(
      float((sampled - began)[0]),
      float((ended - ready)[0]),
      float(total),
      float(own),
      float(max(busy - own, 0.0) / (total * (os.cpu_count() or 1))),
      int(drawn.completion_mask.sum()),
      sum(one.prompts * one.group * one.steps for one in segments),
      float(share_without_spread(rewards)),
    )

  def _program(
    self, compile_for: Callable[..., Any], arguments: tuple[Any, ...], shape: tuple[int, ...]
  ) -> Any:
    """The program compiled for arguments of this shape."""
    if shape not in self._compiled:
      began = time.perf_counter()
      self._compiled[shape] = compile_for(*arguments)
      self.compile_seconds += time.perf_counter() - began
    return self._compiled[shape]


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median, least and largest of some values."""
  return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _clocks() -> np.ndarray:
  """Seconds [3]: the time, and CPU time that all processes and this one have used."""
  stat = Path("/proc/stat").read_text(encoding="ascii")
  ticks = [int(x) for x in stat.split("\n")[0].split()[1:9]]
  busy = sum(ticks) - ticks[3] - ticks[4]  # all but idle and iowait
  return np.array([time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()])


def process_age() -> float:
  """Seconds since this process was started."""
  stat = Path("/proc/self/stat").read_text(encoding="ascii")
  started = int(stat.rpartition(")")[2].split()[19])
  uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
  return uptime - started / os.sysconf("SC_CLK_TCK")


def peak_memory_gib() -> float:
  """Peak memory so far: the device's own count where it has one, else of this process."""
  stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"] / 2**30
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
