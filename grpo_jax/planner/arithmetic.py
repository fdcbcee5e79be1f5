"""Analytic memory, FLOPs and communication of a step on one device, from its shapes.

For GPUs this is all there is; for TPUs it stands beside what the compiler says, so that each checks
the other. Memory traffic counts weights, caches, optimizer, logits and attention scores, once for
each time they must be read or written; other activations are left out, so it is a lower bound.

Shape legend: P prompts, G group, S prompt tokens, T completion tokens, V vocabulary, D width, F mlp
width, N layers, Q query heads, K key/value heads, H head width.
"""

from typing import NamedTuple

from grpo_jax.models.blockwise import DENSE_SCORES
from grpo_jax.models.logprobs import CHUNK_BYTES
from grpo_jax.models.parameters import layer_count, parameter_count
from grpo_jax.planner.job import (
  Job,
  abstract_base,
  abstract_reference,
  abstract_state,
  bytes_per_device,
)


class Resident(NamedTuple):
  """Bytes that stay on a device through the whole run; exact, from shapes and shardings.

  Attributes:
    parameters: what is trained, in float32.
    optimizer: its state.
    base: the frozen model under adapters, in the compute dtype.
    reference: the policy of the start, where a KL term needs it and it is not the base.
  """

  parameters: int
  optimizer: int
  base: int
  reference: int

  @property
  def total(self) -> int:
    return sum(self)


class Caches(NamedTuple):
  """Keys and values of a device's prompts and of their completions, in bytes; exact."""

  prompts: int
  completions: int


class Phase(NamedTuple):
  """FLOPs, memory traffic and communication of one phase on one device.

  Attributes:
    flops: operations of matrix products.
    hbm_bytes: memory traffic, a lower bound.
    sent_bytes: what it sends to other devices.
  """

  flops: float
  hbm_bytes: float
  sent_bytes: float


def resident(job: Job) -> Resident:
  """Bytes of weights, optimizer and reference on one device."""
  state = abstract_state(job)
  return Resident(
    bytes_per_device(state.params),
    bytes_per_device(state.opt_state),
    bytes_per_device(abstract_base(job)),
    0 if job.lora else bytes_per_device(abstract_reference(job)),
  )


def caches(job: Job) -> Caches:
  """Bytes of the sampler's two caches on one device."""
  c = job.config
  tensor = job.mesh.shape["tensor"]  # heads that it does not divide are whole on every device
  heads = c.num_kv_heads if c.num_kv_heads % tensor else c.num_kv_heads // tensor
  token = 2 * c.num_layers * heads * c.head_dim * _width(job)
  prompts = job.prompts_per_step // job.parts
  own = max(job.completion_tokens - 1, 1)
  return Caches(prompts * job.prompt_tokens * token, prompts * job.group * own * token)


def temporaries(job: Job) -> tuple[float, float]:
  """Estimates the peak of temporaries of the sampling and the update program, caches included."""
  c, b, tensor = job.config, _width(job), job.mesh.shape["tensor"]
  local = job.prompts_per_step // job.parts
  # Weights in the compute dtype, two layers of them gathered at a time, and the gathered head.
  copies = resident(job).parameters * b / 4 if b < 4 else 0  # a frozen base has it already
  gathered = (2 * layer_count(c) + c.vocab_size * c.hidden_size) * b / tensor
  gathered *= job.mesh.shape["fsdp"] > 1
  logits = local * job.group * c.vocab_size / tensor * 4
  # For decoding each layer's weights are taken out of the stack, whole where they are gathered.
  apart = _read_once(job) / (1 if _gathers(job) else job.mesh.shape["fsdp"])
  sample = apart + gathered + sum(caches(job)) + 3 * logits

  rows = -(-job.micro_batch // job.parts)
  row = job.prompt_tokens + job.group * max(job.completion_tokens - 1, 0)
  inputs = row * c.hidden_size * b
  inside = row * (4 * c.hidden_size + 2 * (c.num_heads + c.num_kv_heads) * c.head_dim / tensor
                  + 4 * c.intermediate_size / tensor) * b  # fmt: skip
  scores = 4 * sum(_scores(job)) / tensor
  kept = c.num_layers * inputs if job.grpo.remat != "none" else c.num_layers * (inside + scores)
  gradients = (1 + (job.micro_batch < job.minibatch)) * resident(job).parameters
  chunk = 3 * min(CHUNK_BYTES, 4 * rows * job.group * job.completion_tokens * c.vocab_size)
  update = copies + gathered + gradients + rows * (kept + 2 * inside + 3 * scores) + chunk
  return float(sample), float(update)


def prefill_phase(job: Job, flops: float, sent_bytes: float) -> Phase:
  """Encoding the prompts: reads every weight once and writes the prompts' cache."""
  local = job.prompts_per_step // job.parts
  scores = 2 * 4 * local * _scores(job)[0] * job.config.num_layers
  moved = _read_once(job) + caches(job).prompts + scores / job.mesh.shape["tensor"]
  return Phase(flops, moved, sent_bytes)


def decode_phase(job: Job, flops: float, sent_bytes: float) -> Phase:
  """T - 1 steps, each of which reads all weights, the prompts' cache and the completions' own."""
  steps = job.completion_tokens - 1
  held = caches(job)
  logits = 4 * job.prompts_per_step / job.parts * job.group * job.config.vocab_size
  logits /= job.mesh.shape["tensor"]
  # The whole of a completion's cache is read at every step: its slots are masked, not skipped.
  each = _read_once(job) + held.prompts + held.completions + 2 * logits
  return Phase(flops, steps * each, sent_bytes)


def update_phase(job: Job, flops: float, sent_bytes: float) -> Phase:
  """Forward and backward passes of every micro-batch, then the optimizer."""
  passes = job.grpo.inner_updates * job.prompts_per_step / job.micro_batch
  sweeps = _sweeps(job)
  rows = -(-job.micro_batch // job.parts)
  gradients = 3 * resident(job).parameters  # written, then read and written into the sum
  scores = rows * 4 * (2 * sweeps) * sum(_scores(job)) * job.config.num_layers
  logits = 4 * rows * job.group * job.completion_tokens * job.config.vocab_size * 2 * 3
  tensor = job.mesh.shape["tensor"]
  each = sweeps * _read_once(job) + gradients + (scores + logits) / tensor
  # The optimizer reads gradient, weight and state, writes the last two; the norm reads once more.
  steps = job.grpo.inner_updates * job.grpo.minibatches
  held = resident(job)
  moved = 4 * held.parameters + 2 * held.optimizer
  return Phase(flops, passes * each + steps * moved, sent_bytes)


def sent_by_fsdp(job: Job) -> tuple[float, float, float]:
  """Bytes a device sends in prefill, decoding and update when FSDP gathers each weight at each use.

  With `gather_weights`, layers are gathered once more for decoding, before its first step. The
  tensor axis adds two all-reduces of [P, L, D] a layer and pass.
  """
  c, b = job.config, _width(job)
  fsdp, tensor, data = (job.mesh.shape[axis] for axis in ("fsdp", "tensor", "data"))
  gather = parameter_count(c) * b / tensor * (fsdp - 1) / fsdp
  reduce = 2 * (tensor - 1) / tensor * 2 * c.num_layers * c.hidden_size * b
  local = job.prompts_per_step / job.parts
  layers = gather * c.num_layers * layer_count(c) / parameter_count(c)
  prefill = gather + layers * _gathers(job) + reduce * local * job.prompt_tokens
  each = (0 if _gathers(job) else gather) + reduce * local * job.group
  decode = (job.completion_tokens - 1) * each
  passes = job.grpo.inner_updates * job.prompts_per_step / job.micro_batch
  sweeps = _sweeps(job)
  trained = resident(job).parameters  # of a device
  scatter, copies = trained * (fsdp - 1), 2 * trained * (data - 1) / data
  row = job.prompt_tokens + job.group * (job.completion_tokens - 1)
  acts = sweeps * reduce * job.micro_batch / job.parts * row
  return prefill, decode, passes * (sweeps * gather + scatter + copies + acts)


def _read_once(job: Job) -> float:
  return parameter_count(job.config) * _width(job) / job.mesh.shape["tensor"]


def _scores(job: Job) -> tuple[int, int]:
  """Attention scores in memory, of one prompt and of its group, in one layer.

  Where they come in blocks, 0: a block is small, and need not leave the chip.
  """
  heads, own, s = job.config.num_heads, job.completion_tokens - 1, job.prompt_tokens
  held = lambda scores: scores if scores <= DENSE_SCORES else 0
  return held(heads * s * s), held(heads * job.group * own * (s + own))


def _sweeps(job: Job) -> int:
  """How often an update goes through the weights: forward, backward, and forward again."""
  return 2 if job.grpo.remat == "none" else 3


def _gathers(job: Job) -> bool:
  """The sampler holds every weight whole along `fsdp`."""
  return job.grpo.gather_weights and job.mesh.shape["fsdp"] > 1


def _width(job: Job) -> int:
  """Bytes of a number in the compute dtype."""
  return 4 if job.config.dtype == "float32" else 2
