"""Times our step: the functions that training compiles, on random weights and prompts."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.benchmarking.shapes import Workload
from grpo_jax.grpo import GRPOConfig, step_key
from grpo_jax.models import DecoderConfig, init_params
from grpo_jax.optimizers import make_optimizer, make_schedule
from grpo_jax.programs import learn_program, resolve, sample_program
from grpo_jax.sampling import SamplingConfig
from grpo_jax.sharding import make_mesh
from grpo_jax.types import Prompts, TrainState

LEARNING_RATE = 1e-6
FIRST_TOKEN = 3  # those below are special in the shapes' vocabularies


class Spread(NamedTuple):
  """Median and extremes of a figure over steps."""

  median: float
  min: float
  max: float


class Timed(NamedTuple):
  """One step.

  Attributes:
    sample: seconds until the candidates were there.
    update: seconds from their rewards to the new parameters.
    total: seconds of the whole step, rewards included.
    cpu: CPU seconds of this process, all threads; what to compare on a machine that is not quiet.
    foreign: share of the machine's CPU time that other processes took meanwhile; NaN where the
      system does not say.
  """

  sample: float
  update: float
  total: float
  cpu: float
  foreign: float


def spread(values: Sequence[float]) -> Spread:
  """Median, least and largest of some values."""
  return Spread(statistics.median(values), min(values), max(values))


class TimedStep:
  """Our GRPO step, compiled, with its state.

  Args:
    policy: the decoder; its weights are drawn.
    load: the batch.
    micro_batch_prompts: prompts in a backward pass; 0 takes all at once.
    seed: of weights, prompts and samples.

  Attributes:
    compile_seconds: of both programs, from the persistent cache when they are in it.
  """

  def __init__(
    self, policy: DecoderConfig, load: Workload, micro_batch_prompts: int = 1, seed: int = 0
  ) -> None:
    self.policy, self.load, self.seed, self.step = policy, load, seed, 0
    mesh = make_mesh("data:1,fsdp:1,tensor:1")
    cfg = GRPOConfig(
      SamplingConfig(load.group_size, load.completion_tokens),
      micro_batch_prompts=micro_batch_prompts,
    )
    cfg = resolve(cfg, policy, mesh, ())  # no stop tokens: every candidate runs to its full length
    tx = make_optimizer("adamw", make_schedule(LEARNING_RATE, 0), weight_decay=0.0, clip_norm=1.0)

    def start(key: jax.Array) -> TrainState:
      params = init_params(policy, key)
      return TrainState(params, tx.init(params), jnp.int32(0), key)

    self.state = jax.block_until_ready(jax.jit(start)(jax.random.key(seed)))
    sample = sample_program(policy, mesh, cfg.sampling)
    shapes = (self.state.params, None, self.prompts(), self.state.key)
    rollout = jax.eval_shape(sample, *shapes)
    rewards = jax.ShapeDtypeStruct((load.prompts, load.group_size), jnp.float32)
    learn = learn_program(policy, mesh, tx, cfg)
    began = time.perf_counter()
    self._sample = sample.lower(*shapes).compile()
    self._learn = learn.lower(self.state, None, None, rollout, rewards).compile()
    self.compile_seconds = time.perf_counter() - began

  def prompts(self) -> Prompts:
    """This step's prompts: random tokens, another draw for each step."""
    count, length = self.load.prompts, self.load.prompt_tokens
    tokens = token_ids(self.policy.vocab_size, self.seed, self.step, (count, length))
    return Prompts(tokens, np.ones((count, length), bool), np.arange(count, dtype=np.int32))

  def run(self) -> Timed:
    """Takes one step and times it."""
    prompts = jax.block_until_ready(jax.device_put(self.prompts()))
    before, began = _cpu_seconds(), time.perf_counter()
    rollout = self._sample(self.state.params, None, prompts, step_key(self.state))
    jax.block_until_ready(rollout)
    sampled = time.perf_counter()
    tokens = np.asarray(rollout.tokens)
    # Any function of the tokens that differs within a group: no group is left out of the update.
    rewards = ((tokens % 7 == 0).mean(-1) + 1e-6 * tokens[..., 0]).astype(np.float32)
    scored = time.perf_counter()
    self.state, metrics = self._learn(self.state, None, None, rollout, rewards)
    jax.block_until_ready((self.state, metrics))
    ended = time.perf_counter()
    self.step += 1
    busy, own = (b - a for a, b in zip(before, _cpu_seconds(), strict=True))
    foreign = max(0.0, busy - own) / ((ended - began) * (os.cpu_count() or 1))
    return Timed(sampled - began, ended - scored, ended - began, own, foreign)


def token_ids(vocab: int, seed: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
  """Random ordinary tokens, int32, a function of (seed, step)."""
  rng = np.random.default_rng((seed, step))
  return rng.integers(min(FIRST_TOKEN, vocab - 1), vocab, shape).astype(np.int32)


def _cpu_seconds() -> tuple[float, float]:
  """CPU seconds that all processes (NaN off Linux) and this one have used."""
  stat = Path("/proc/stat")
  if not stat.exists():
    return float("nan"), time.process_time()
  ticks = [int(x) for x in stat.read_text(encoding="ascii").split("\n")[0].split()[1:9]]
  busy = sum(ticks) - ticks[3] - ticks[4]  # all but idle and iowait
  return busy / os.sysconf("SC_CLK_TCK"), time.process_time()


def process_age() -> float:
  """Seconds since this process was started (of the import of this module, off Linux)."""
  stat = Path("/proc/self/stat")
  if not stat.exists():
    return time.perf_counter() - _IMPORTED
  started = int(stat.read_text(encoding="ascii").rpartition(")")[2].split()[19])
  uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
  return uptime - started / os.sysconf("SC_CLK_TCK")


_IMPORTED = time.perf_counter()


def peak_memory_gib() -> float:
  """Peak memory so far: the device's own count where it has one, else of this process."""
  stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"] / 2**30
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
