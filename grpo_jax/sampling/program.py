"""Sampling as compiled programs: in segments, between which what has ended is left out."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.config import SamplingConfig
from grpo_jax.models import (
  DecoderConfig,
  LoraConfig,
  Params,
  in_compute_dtype,
  layers_apart,
  with_adapters,
)
from grpo_jax.models.placement import split_prompts
from grpo_jax.sampling.decoding import (
  DecodeState,
  begin,
  compact,
  decode,
  rollout_of,
  sample_groups,
  settle,
  shape_left,
)
from grpo_jax.sharding import AnyMesh, decoding_parameters, on_mesh
from grpo_jax.types import Prompts, Rollout

# Rows times steps that a smaller shape must save: what gathering costs, and a program that is
# compiled once for a shape and used again.
WORTH = 512.0


class Segment(NamedTuple):
  """A part of a batch's decoding, in one shape.

  Attributes:
    prompts: P.
    group: G.
    steps: tokens that were drawn of each candidate, the first one of all not counted.
  """

  prompts: int
  group: int
  steps: int


@dataclasses.dataclass(frozen=True)
class SampleProgram:
  """`sample_groups` in segments, so that candidates that have ended cost nothing.

  (trained, base, prompts, key) -> `Rollout`. A segment is one compiled program: it decodes until
  every candidate has ended, or those that go on fit into a shape so much smaller that going on in
  it pays. Then the host, which learns no more than that shape, has them gathered into it. It
  depends on what was drawn alone, so a replay, or another host, goes on in the same shapes.

  On a mesh each device keeps its prompts: cutting candidates or prompts sends nothing.

  Attributes:
    config: the decoder.
    mesh: where it runs; None where the arguments' places say it.
    sampling: how to draw.
    lora: of the adapters in `trained`; None where the whole model is trained.
    gather_weights: as in `GRPOConfig`.
    worth: rows times steps that a smaller shape must save.
  """

  config: DecoderConfig
  mesh: AnyMesh | None
  sampling: SamplingConfig
  lora: LoraConfig | None = None
  gather_weights: bool = True
  worth: float = dataclasses.field(default=WORTH, compare=False)  # an argument of the programs

  def __call__(
    self, trained: Params, base: Params | None, prompts: Prompts, key: jax.Array
  ) -> Rollout:
    return self.run(trained, base, prompts, key)[0]

  def run(
    self,
    trained: Params,
    base: Params | None,
    prompts: Prompts,
    key: jax.Array,
    weights: Params | None = None,
  ) -> tuple[Rollout, list[Segment]]:
    """The rollout, and in which shapes it was decoded; `weights` where they are made already."""
    state, settled = self._begin(trained, base, prompts, key), None
    weights = self.weights(trained, base) if weights is None else weights
    segments: list[Segment] = []
    done, group = 1, self.sampling.group_size
    while group:
      shape = state.ended.shape[0], state.ended.shape[1]
      state, left = self._decode(weights, state, *self._limits())
      step, count, group = map(int, jax.device_get(left))  # every host has these
      segments.append(Segment(*shape, step - done))
      done = step
      if group:
        state, settled = self._compact(state, settled, count, group)
    drawn = state.drawn if settled is None else self._settle(settled, state)
    return rollout_of(prompts, drawn), segments

  def compile(
    self, trained: Params, base: Params | None, prompts: Prompts, key: jax.Array
  ) -> SampleProgram:
    """Itself, its programs compiled for arguments like these; smaller shapes when they occur."""
    given = (trained, base, prompts, key)
    weights = self.weights(trained, base)
    type(self)._begin.lower(self, *given).compile()
    state = jax.eval_shape(self._begin, *given)
    type(self)._decode.lower(self, weights, state, *self._limits()).compile()
    return self

  def trace(self, *given: Any) -> Any:
    """All of the work as one program, one segment, traced with what a call takes or its shapes."""
    return type(self)._whole.trace(self, *given)

  def weights(self, trained: Params, base: Params | None) -> Params:
    """What decoding reads, to be made once for all batches and segments.

    On one device the layers are taken apart by one small program for them all.
    """
    if self.mesh is not None and self.mesh.size > 1:
      return self._gathered(trained, base)
    params = with_adapters(trained, base, self.lora)
    rest = {name: x for name, x in params.items() if name != "layers"}
    return _cast(self.config, rest) | {"layers": layers_apart(self.config, params)}

  def _limits(self) -> tuple[np.int32, np.float32]:
    return np.int32(self.sampling.max_tokens), np.float32(self.worth)

  @functools.partial(jax.jit, static_argnums=0)
  def _gathered(self, trained, base):
    with on_mesh(self.mesh):
      params = with_adapters(trained, base, self.lora)
      return decoding_parameters(self.config, params, gather=self.gather_weights)

  @functools.partial(jax.jit, static_argnums=0)
  def _begin(self, trained, base, prompts, key):
    with on_mesh(self.mesh):
      params = with_adapters(trained, base, self.lora)
      state = begin(self.config, params, prompts, key, self.sampling)
      # The state is donated and the caller's mask is not.
      prompt = state.prompt._replace(mask=jnp.array(state.prompt.mask, copy=True))
      arrays = state._replace(prompt=prompt)._asdict()
      return DecodeState(step=arrays.pop("step"), **split_prompts(arrays))

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
  def _decode(self, weights, state, until, worth):
    with on_mesh(self.mesh):
      state = decode(self.config, weights, state, self.sampling, until, worth)
      prompts, group = shape_left(state.ended)
      return state, (state.step, prompts, jnp.where(state.step < until, group, 0))

  @functools.partial(jax.jit, static_argnums=(0, 3, 4), donate_argnums=2)
  def _compact(self, state, settled, prompts, group):
    with on_mesh(self.mesh):
      return compact(state, settled, prompts, group)

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
  def _settle(self, settled, state):
    with on_mesh(self.mesh):
      return settle(settled, state)

  @functools.partial(jax.jit, static_argnums=0)
  def _whole(self, trained, base, prompts, key):
    with on_mesh(self.mesh):
      params = with_adapters(trained, base, self.lora)
      weights = decoding_parameters(self.config, params, gather=self.gather_weights)
      return sample_groups(self.config, params, prompts, key, self.sampling, weights)


_cast = jax.jit(in_compute_dtype, static_argnums=0)


def sample_program(
  config: DecoderConfig,
  mesh: AnyMesh,
  sampling: SamplingConfig,
  lora: LoraConfig | None = None,
  *,
  gather_weights: bool = True,
) -> SampleProgram:
  """The `SampleProgram` of these settings; `gather_weights` as in `GRPOConfig`."""
  return SampleProgram(config, mesh, sampling, lora, gather_weights)
