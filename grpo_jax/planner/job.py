"""The step to plan: its programs, and their arguments as `ShapeDtypeStruct`s with shardings."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from grpo_jax.config import GRPOConfig, OptimizerConfig
from grpo_jax.grpo import reference_program, resolve, update_program
from grpo_jax.models import DecoderConfig, LoraConfig, init_adapters, init_params
from grpo_jax.optimizers import make_optimizer, make_schedule
from grpo_jax.sampling import sample_program
from grpo_jax.sharding import batch_parts, batch_sharding, state_shardings
from grpo_jax.types import GRPOBatch, Prompts, Rollout, TrainState


@dataclass(frozen=True)
class Job:
  """One GRPO step of one model on one mesh.

  Attributes:
    config: of the decoder, its compute dtype included.
    mesh: of real, described or no devices (`AbstractMesh`).
    grpo: the algorithm's settings; G, T and the micro-batch among them.
    prompts_per_step: P.
    prompt_tokens: S, the padded length of a prompt.
    lora: the adapters that are trained on the frozen model; None trains the whole model.
    optimizer: which, and its numbers.
  """

  config: DecoderConfig
  mesh: Mesh | AbstractMesh
  grpo: GRPOConfig
  prompts_per_step: int
  prompt_tokens: int
  lora: LoraConfig | None = None
  optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

  def __post_init__(self) -> None:
    parts = batch_parts(self.mesh)
    if self.prompts_per_step % parts:
      raise ValueError(
        f"--mesh splits prompts into {parts} parts, which do not divide "
        f"--prompts_per_step={self.prompts_per_step}"
      )
    if self.minibatch % self.micro_batch:
      raise ValueError(
        f"--micro_batch_prompts={self.micro_batch} does not divide the {self.minibatch} prompts of "
        "an optimizer step"
      )

  @property
  def minibatch(self) -> int:
    """Prompts of an optimizer step."""
    return self.prompts_per_step // self.grpo.minibatches

  @property
  def micro_batch(self) -> int:
    """Prompts in one backward pass."""
    return self.grpo.micro_batch_prompts or self.minibatch

  @property
  def parts(self) -> int:
    """Into how many parts the devices split prompts."""
    return batch_parts(self.mesh)

  @property
  def completion_tokens(self) -> int:
    """T."""
    return self.grpo.sampling.max_tokens

  @property
  def group(self) -> int:
    """G."""
    return self.grpo.sampling.group_size

  def with_layers(self, layers: int) -> Self:
    """The same step of a decoder of that many layers."""
    windows = self.config.windows[:layers]
    config = dataclasses.replace(self.config, num_layers=layers, windows=windows)
    return dataclasses.replace(self, config=config)

  def with_prompts(self, prompts: int) -> Self:
    """The same step with that many prompts, all of them in one backward pass."""
    grpo = dataclasses.replace(self.grpo, micro_batch_prompts=0, minibatches=1)
    return dataclasses.replace(self, grpo=grpo, prompts_per_step=prompts)


def abstract_state(job: Job) -> TrainState:
  """The `TrainState` as shapes with shardings.

  Raises:
    ValueError: the mesh does not divide the model.
  """

  def trained(key: jax.Array) -> Any:
    return init_adapters(job.config, job.lora, key) if job.lora else init_params(job.config, key)

  params = jax.eval_shape(trained, _abstract_key())
  opt_state = jax.eval_shape(_optimizer(job).init, params)
  step: Any = jax.ShapeDtypeStruct((), jnp.int32)
  return _on_mesh(job, TrainState(params, opt_state, step, _abstract_key()))


def abstract_base(job: Job) -> Any:
  """The frozen base under adapters, in the compute dtype, as shapes; None without adapters."""
  if job.lora is None:
    return None
  whole = jax.eval_shape(lambda key: init_params(job.config, key), _abstract_key())
  dtype = jnp.dtype(job.config.dtype)
  return _on_mesh(job, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), whole))


def abstract_reference(job: Job) -> Any:
  """The policy of the start where a KL term needs it: the base itself under adapters."""
  if not job.grpo.kl_weight:
    return None
  return abstract_base(job) if job.lora else abstract_state(job).params


def abstract_rollout(job: Job) -> Rollout:
  """The `Rollout` of shapes; its `prompts` are the sampling program's argument."""
  place = batch_sharding(job.mesh)

  def array(dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct((job.prompts_per_step, *shape), dtype, sharding=place)

  s, group, t = job.prompt_tokens, job.group, job.completion_tokens
  prompts = Prompts(array(jnp.int32, s), array(jnp.bool_, s), array(jnp.int32))
  ours = lambda dtype: array(dtype, group, t)
  return Rollout(
    prompts, ours(jnp.int32), ours(jnp.bool_), ours(jnp.bool_), ours(jnp.float32), ours(jnp.float32)
  )


def abstract_batch(job: Job) -> GRPOBatch:
  """The `GRPOBatch` of shapes."""
  rollout = abstract_rollout(job)
  advantages: Any = jax.ShapeDtypeStruct((job.prompts_per_step, job.group), jnp.float32)
  ref_logp = rollout.logp if job.grpo.kl_weight else None
  return GRPOBatch(rollout, advantages, rollout.logp, ref_logp)


def trace_sample(job: Job) -> Any:
  """The sampling program, traced: `.jaxpr`, `.lower()`."""
  grpo = _resolved(job)
  program = sample_program(
    job.config, job.mesh, grpo.sampling, job.lora, gather_weights=grpo.gather_weights
  )
  trained, prompts = abstract_state(job).params, abstract_rollout(job).prompts
  return program.trace(*_traceable(job, (trained, abstract_base(job), prompts)), _abstract_key())


def trace_update(job: Job) -> Any:
  """The update program, traced: `.jaxpr`, `.lower()`."""
  program = update_program(job.config, job.mesh, _optimizer(job), _resolved(job), job.lora)
  arguments = (abstract_state(job), abstract_batch(job), abstract_base(job))
  return program.trace(*_traceable(job, arguments))


def trace_reference(job: Job) -> Any:
  """The program that scores a rollout under the reference, traced; needs a KL term."""
  program = reference_program(job.config, job.mesh, _resolved(job))
  return program.trace(*_traceable(job, (abstract_reference(job), abstract_rollout(job))))


def bytes_per_device(tree: Any) -> int:
  """Bytes that one device holds of a tree of shapes with shardings."""
  shape = lambda leaf: leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
  return sum(math.prod(shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _resolved(job: Job) -> GRPOConfig:
  # A stop token there must be: without one, decoding is a loop of known length, a different one.
  return resolve(job.grpo, job.config, job.mesh, job.config.eos_token_ids or (0,))


def _optimizer(job: Job) -> Any:
  # Only its state's shape matters here, and no schedule changes it.
  return make_optimizer(job.optimizer, make_schedule(job.optimizer.learning_rate, 0))


def _abstract_key() -> Any:
  return jax.eval_shape(lambda: jax.random.key(0))


def _on_mesh(job: Job, tree: Any) -> Any:
  placed = state_shardings(job.config, job.mesh, tree)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, placed)


def _traceable(job: Job, tree: Any) -> Any:
  """Drops the shardings on an `AbstractMesh`: without devices, shapes alone are traced."""
  if isinstance(job.mesh, Mesh):
    return tree
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
