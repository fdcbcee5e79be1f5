"""The roofline of a step: its time at the FLOP/s and bandwidth measured on this machine."""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.benchmarking.flops import StepWork
from grpo_jax.benchmarking.shapes import Workload
from grpo_jax.models import DecoderConfig

ROUNDS = 5
BANDWIDTH_BYTES = 2**29  # far more than a cache holds


class Rates(NamedTuple):
  """What the machine was measured to do.

  Attributes:
    large: FLOP/s of large matrix products.
    skinny: FLOP/s of products with as many rows as there are candidates.
    bandwidth: bytes/s from and to memory.
  """

  large: float
  skinny: float
  bandwidth: float


class Floor(NamedTuple):
  """Seconds that a step cannot go below at given rates.

  Attributes:
    sample: encoding at the rate of large products; each decoded token at the rate of skinny ones
      or of memory, whichever takes longer.
    update: forward and backward at the rate of large products, the optimizer at that of memory.
  """

  sample: float
  update: float

  @property
  def total(self) -> float:
    """The whole step."""
    return self.sample + self.update


def floor_of(work: StepWork, rates: Rates) -> Floor:
  """The floor of a step's work."""
  decode = sum(
    max(flops / rates.skinny, moved / rates.bandwidth)
    for flops, moved in zip(work.decode_flops, work.decode_bytes, strict=True)
  )
  return Floor(
    work.prefill_flops / rates.large + decode,
    work.training_flops / rates.large + work.optimizer_bytes / rates.bandwidth,
  )


def measure_rates(config: DecoderConfig, load: Workload, seconds: float = 0.2) -> Rates:
  """Measures the machine in this process, on products of this step's shapes.

  The best rate found over shapes and rounds counts: it makes the lowest floor.

  Args:
    config: gives the widths of the products and their dtype.
    load: gives the rows of the skinny ones.
    seconds: for each round of each product.
  """
  width, hidden, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
  dtype = jnp.dtype(config.dtype)
  large = ((2048, 2048, 2048), (8192, width, hidden), (2048, width, vocab))
  skinny = ((load.rows, width, hidden), (load.rows, hidden, width), (load.rows, width, vocab))
  rate = lambda shapes: max(_product_rate(shape, dtype, seconds) for shape in shapes)
  return Rates(rate(large), rate(skinny), _bandwidth(seconds))


def _product_rate(shape: tuple[int, int, int], dtype: jnp.dtype, seconds: float) -> float:
  """FLOP/s of [rows, depth] @ [depth, columns]."""
  rows, depth, columns = shape
  left = jax.random.normal(jax.random.key(0), (rows, depth), dtype)
  right = jax.random.normal(jax.random.key(1), (depth, columns), dtype)
  # Of 16-bit numbers either form may be the faster one.
  plain, wide = jax.jit(jnp.matmul), jax.jit(_float32_product)
  best = min(_best_time(functools.partial(f, left, right), seconds) for f in (plain, wide))
  return 2 * rows * depth * columns / best


def _float32_product(left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _bandwidth(seconds: float) -> float:
  """Bytes/s, the better of reading and of copying an array."""
  array = jnp.ones(BANDWIDTH_BYTES // 4, jnp.float32)
  read, copied = jax.jit(jnp.sum), jax.jit(lambda x: x + 1)
  return max(
    BANDWIDTH_BYTES / _best_time(lambda: read(array), seconds),
    2 * BANDWIDTH_BYTES / _best_time(lambda: copied(array), seconds),
  )


def _best_time(call: Callable[[], jax.Array], seconds: float) -> float:
  """Seconds of one call, the best mean of several rounds."""
  call().block_until_ready()

  def mean_of(repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
      call().block_until_ready()
    return (time.perf_counter() - began) / repeats

  repeats = max(1, int(seconds / max(mean_of(1), 1e-6)))
  return min(mean_of(repeats) for _ in range(ROUNDS))
