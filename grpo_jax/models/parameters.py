"""The decoder's parameters, each declared once.

Initial draws, loading and saving, placement on a mesh, adapters and counts all follow from
`parameters`. A layer's parameters are stacked over the layers: `params["layers"]["q"]["kernel"]` is
[N, D, Q * H], of which checkpoints hold N tensors.

Shape legend: V vocabulary, D width, F mlp width, N layers, Q query heads, K key/value heads, H head
width, r rank of adapters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import lax
from jax.sharding import PartitionSpec

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.xla_cpu import as_bits, from_bits
from grpo_jax.types import Array

Params = dict[str, Any]
TreePath = tuple[str, ...]


class Parameter(NamedTuple):
  """One parameter, of one layer or of the whole decoder.

  Attributes:
    path: keys from the root of the parameter tree.
    shape: of one layer; kernels are [in, out].
    name: the Hugging Face tensor name, `{}` standing for a layer's number.
    spec: how a mesh of the axes `fsdp` and `tensor` splits it.
    init: normal of standard deviation 0.02, ones or zeros.
    turned: the checkpoint stores the transpose.
    heads: whose heads the tensor axis splits, if any.
    layers: N where it is stacked, else 0.
  """

  path: TreePath
  shape: tuple[int, ...]
  name: str
  spec: PartitionSpec = PartitionSpec()
  init: Literal["normal", "ones", "zeros"] = "normal"
  turned: bool = False
  heads: Literal["", "query", "key/value"] = ""
  layers: int = 0

  @property
  def stacked_shape(self) -> tuple[int, ...]:
    """The shape in the parameter tree: [N, ..] where it is stacked."""
    return (self.layers, *self.shape) if self.layers else self.shape

  @property
  def stored_shape(self) -> tuple[int, ...]:
    """The shape of a tensor in the checkpoint."""
    return self.shape[::-1] if self.turned else self.shape

  @property
  def names(self) -> tuple[str, ...]:
    """The tensors of the checkpoint that hold it: one for each layer where it is stacked."""
    return tuple(self.name.format(n) for n in range(self.layers)) or (self.name,)

  @property
  def size(self) -> int:
    """Entries, in all layers."""
    return math.prod(self.stacked_shape)


class Tensor(NamedTuple):
  """A tensor of a checkpoint: a parameter, or one layer of it.

  Attributes:
    name: in the checkpoint.
    parameter: what it belongs to.
    layer: its place on the stacked axis; None where there is none.
  """

  name: str
  parameter: Parameter
  layer: int | None


@functools.cache
def parameters(config: DecoderConfig) -> tuple[Parameter, ...]:
  """Every parameter of a decoder; a layer's in the order in which checkpoints hold them."""
  c = config
  d, f = c.hidden_size, c.intermediate_size
  q, k = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
  unit: Literal["ones", "zeros"] = "zeros" if c.norm_offset else "ones"
  wide, narrow = PartitionSpec("fsdp", "tensor"), PartitionSpec("tensor", "fsdp")

  def norm(ours: str, theirs: str, width: int = d) -> Iterator[Parameter]:
    name = f"model.layers.{{}}.{theirs}.weight"
    yield Parameter(("layers", ours, "scale"), (width,), name, init=unit, layers=c.num_layers)

  def dense(ours, theirs, shape, spec, heads="", bias=False) -> Iterator[Parameter]:
    name = f"model.layers.{{}}.{theirs}"
    yield Parameter(
      ("layers", ours, "kernel"), shape, f"{name}.weight", spec, "normal", True, heads, c.num_layers
    )
    if bias:
      # An output bias is added after the sum over the tensor axis: it is everywhere.
      split = PartitionSpec("tensor") if spec == wide else PartitionSpec()
      yield Parameter(
        ("layers", ours, "bias"), shape[1:], f"{name}.bias", split, "zeros", False, heads,
        c.num_layers,
      )  # fmt: skip

  def table() -> Iterator[Parameter]:
    yield Parameter(("embed", "embedding"), (c.vocab_size, d), "model.embed_tokens.weight", narrow)
    yield from norm("attn_norm", "input_layernorm")
    yield from dense("q", "self_attn.q_proj", (d, q), wide, "query", c.attention_bias)
    yield from dense("k", "self_attn.k_proj", (d, k), wide, "key/value", c.attention_bias)
    yield from dense("v", "self_attn.v_proj", (d, k), wide, "key/value", c.attention_bias)
    if c.qk_norm:
      yield from norm("q_norm", "self_attn.q_norm", c.head_dim)
      yield from norm("k_norm", "self_attn.k_norm", c.head_dim)
    yield from dense("o", "self_attn.o_proj", (q, d), narrow, "query", c.output_bias)
    if c.post_norms:
      yield from norm("post_attn_norm", "post_attention_layernorm")
    yield from norm(
      "mlp_norm", "pre_feedforward_layernorm" if c.post_norms else "post_attention_layernorm"
    )
    yield from dense("gate", "mlp.gate_proj", (d, f), wide)
    yield from dense("up", "mlp.up_proj", (d, f), wide)
    yield from dense("down", "mlp.down_proj", (f, d), narrow)
    if c.post_norms:
      yield from norm("post_mlp_norm", "post_feedforward_layernorm")
    yield Parameter(("final_norm", "scale"), (d,), "model.norm.weight", init=unit)
    if not c.tie_embeddings:
      yield Parameter(("head", "kernel"), (d, c.vocab_size), "lm_head.weight", wide, turned=True)

  return tuple(table())


def parameter_count(config: DecoderConfig) -> int:
  """Entries of all parameters."""
  return sum(p.size for p in parameters(config))


def layer_count(config: DecoderConfig, *, matrices_only: bool = False) -> int:
  """Entries of one layer's parameters."""
  some = [p for p in parameters(config) if p.layers and (len(p.shape) > 1 or not matrices_only)]
  return sum(math.prod(p.shape) for p in some)


def linear_layers(config: DecoderConfig) -> tuple[str, ...]:
  """The names of a layer's linear maps, which can have adapters."""
  return tuple(p.path[1] for p in parameters(config) if p.layers and p.path[2] == "kernel")


def adapter_parameters(
  config: DecoderConfig, rank: int, targets: Sequence[str]
) -> list[tuple[Parameter, Parameter]]:
  """A [in, r] and B [r, out] of every target, in the table's order; named as PEFT names them.

  They lie as their kernel does; the rank is never split.
  """
  pairs = []
  for kernel in parameters(config):
    if not kernel.layers or kernel.path[2] != "kernel" or kernel.path[1] not in targets:
      continue
    module = f"base_model.model.{kernel.name.removesuffix('.weight')}"

    def half(letter: str, shape, spec, kernel=kernel, module=module) -> Parameter:
      path, name = (*kernel.path[:2], f"lora_{letter.lower()}"), f"{module}.lora_{letter}.weight"
      return kernel._replace(path=path, shape=shape, name=name, spec=spec)

    (inner, outer), (across, along) = kernel.shape, kernel.spec
    a = half("A", (inner, rank), PartitionSpec(across, None))
    b = half("B", (rank, outer), PartitionSpec(None, along))
    pairs.append((a, b))
  return pairs


def declaration(config: DecoderConfig, path: TreePath, shape: Sequence[int]) -> Parameter | None:
  """The parameter at a path, or half of an adapter, if it is of that (stacked) shape."""
  table = list(parameters(config))
  if path[-1] in ("lora_a", "lora_b") and len(shape) == 3:
    # Nothing but an adapter's own shape says what its rank is.
    rank = shape[-1 if path[-1] == "lora_a" else -2]
    table = [half for pair in adapter_parameters(config, rank, path[1:2]) for half in pair]
  found = (p for p in table if p.path == path and p.stacked_shape == tuple(shape))
  return next(found, None)


def checkpoint_tensors(table: Sequence[Parameter]) -> list[Tensor]:
  """The tensors of a checkpoint, in its order: what is before the layers, each layer, the rest."""
  stacked = [p for p in table if p.layers]
  first = table.index(stacked[0])
  alone = lambda some: [Tensor(p.name, p, None) for p in some]
  layers = [Tensor(p.names[n], p, n) for n in range(stacked[0].layers) for p in stacked]
  return alone(table[:first]) + layers + alone(table[first + len(stacked) :])


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
  """Draws random float32 parameters (normal kernels of std 0.02, as Qwen's, unit norms).

  Each matrix is drawn with the key folded by its place when all layers' are sorted by name.
  """
  named = lambda p, n: (f"layers_{n}", *p.path[1:]) if p.layers else p.path
  table = parameters(config)
  order = sorted(named(p, n) for p in table for n in range(max(p.layers, 1)))
  place = {path: i for i, path in enumerate(order)}

  def draw(p: Parameter) -> jax.Array:
    if p.init != "normal":
      return (jnp.ones if p.init == "ones" else jnp.zeros)(p.stacked_shape, jnp.float32)
    one = lambda i: 0.02 * jax.random.normal(jax.random.fold_in(key, i), p.shape, jnp.float32)
    if not p.layers:
      return one(place[p.path])
    return jax.vmap(one)(jnp.array([place[named(p, n)] for n in range(p.layers)]))

  return unflatten_dict({p.path: draw(p) for p in table})


def is_matrix(path: Sequence[Any]) -> bool:
  """Whether a path of jax's ends at a matrix: not at the scale of a norm or at a bias."""
  return path[-1].key not in ("scale", "bias")


def in_compute_dtype(config: DecoderConfig, params: Params) -> Params:
  """Matrices in the compute dtype; vectors as they are, for the layers cast these themselves."""
  cast = lambda path, x: matrix(config, x) if is_matrix(path) else x
  return jax.tree_util.tree_map_with_path(cast, params, is_leaf=_is_in_bits)


class InBits(NamedTuple):
  """A matrix in a compute dtype of 16 bits, cast once for many uses.

  Attributes:
    bits: `as_bits` of it.
    weight: the matrix as it is trained or stored, to which the gradient goes, unrounded.
  """

  bits: jax.Array
  weight: jax.Array


def in_bits(config: DecoderConfig, params: Params) -> Params:
  """Parameters whose matrices are `InBits`, in a compute dtype of 16 bits; else as they are."""
  if config.dtype == "float32":
    return params

  def cast(path, x):
    if isinstance(x, InBits) or not is_matrix(path):
      return x
    return InBits(as_bits(lax.stop_gradient(x).astype(config.dtype)), x)

  return jax.tree_util.tree_map_with_path(cast, params, is_leaf=_is_in_bits)


def with_weights(stored: Params, weights: Params) -> Params:
  """What `in_bits` made of some weights, with the gradient going to these ones, of equal value."""
  put = lambda old, new: old._replace(weight=new) if isinstance(old, InBits) else new
  return jax.tree.map(put, stored, weights, is_leaf=_is_in_bits)


def matrix(config: DecoderConfig, x: jax.Array | InBits) -> jax.Array:
  """A matrix in the compute dtype."""
  if isinstance(x, InBits):
    return _valued(x.bits, x.weight, config.dtype)
  return x.astype(config.dtype)


def rows_of(config: DecoderConfig, table: jax.Array | InBits, rows: Array) -> jax.Array:
  """Rows [.., D] in the compute dtype of a matrix [V, D], looked up by their numbers [..]."""
  if not isinstance(table, InBits) and config.dtype == "float32":
    return jnp.take(table, rows, axis=0)
  bits, weight = in_bits(config, {"embedding": table})["embedding"]
  return _looked_up(bits, weight, rows, config.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _valued(bits: jax.Array, weight: jax.Array, dtype: str) -> jax.Array:
  return from_bits(bits, dtype)


_valued.defvjp(
  lambda bits, weight, dtype: (from_bits(bits, dtype), jnp.zeros((), weight.dtype)),
  lambda dtype, like, g: (None, g.astype(like.dtype)),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _looked_up(bits: jax.Array, weight: jax.Array, rows: jax.Array, dtype: str) -> jax.Array:
  return from_bits(jnp.take(bits, rows, axis=0), dtype)


def _looked_up_forward(bits, weight, rows, dtype):
  return _looked_up(bits, weight, rows, dtype), (jnp.zeros((), weight.dtype), bits.shape, rows)


def _looked_up_backward(dtype, saved, g):
  like, shape, rows = saved
  total = jnp.zeros(shape, jnp.float32).at[rows].add(g.astype(jnp.float32))
  return None, total.astype(like.dtype), None


_looked_up.defvjp(_looked_up_forward, _looked_up_backward)


def _is_in_bits(x: Any) -> bool:
  return isinstance(x, InBits)


def unstacked(config: DecoderConfig, params: Params) -> Params:
  """The same parameters in the compute dtype, with `layers` as a tuple of each layer's own.

  For a loop over tokens, which must not cut or cast every weight for each of them.
  """
  params = in_compute_dtype(config, params)
  stack = params["layers"]
  count = jax.tree.leaves(stack)[0].shape[0]
  layers = tuple(jax.tree.map(lambda x, n=n: x[n], stack) for n in range(count))
  return params | {"layers": layers}


@functools.partial(jax.jit, static_argnums=0)
def layer_of(config: DecoderConfig, stack: Params, n: jax.Array) -> Params:
  """The n-th layer's own parameters of `params["layers"]`, in the compute dtype."""
  cut = lambda x: lax.dynamic_index_in_dim(x, n, keepdims=False)
  return in_compute_dtype(config, jax.tree.map(cut, stack))


def layers_apart(config: DecoderConfig, params: Params) -> tuple[Params, ...]:
  """The layers of `unstacked`, taken out between programs by one small program for them all.

  Taken apart inside a program, each weight of each layer is a slice that XLA compiles for itself.
  """
  count = jax.tree.leaves(params["layers"])[0].shape[0]
  return tuple(layer_of(config, params["layers"], np.int32(n)) for n in range(count))
