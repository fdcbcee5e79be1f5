"""What is done for XLA on CPU alone, with what each costs there otherwise (jax 0.10, two cores).

Other platforms get the plain form. Where the two are different programs the choice is made when a
program is lowered (`lax.platform_dependent`), so that one compiled for a TPU on a machine without
any is the TPU's. The rest is the same arithmetic in another shape, free elsewhere:

* keys are cached transposed, `[.., H, S]` (`kv_cache.py`): a product with queries takes them as
  they lie;
* tokens are one axis, `[P * L, D]`, in a layer, the last norm and the head (`flat`): sums over an
  array that begins with an axis of one are up to ten times slower;
* what only moves is 16-bit integers where it would be bfloat16 (`as_bits`, `kept`), and scores are
  products with the rows of the vocabulary (`scores_of`): neither is converted or copied as a whole;
* `over_first` leaves such an axis out of attention and of the head's chunks for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

KEPT = "kept"


def stored(x: jax.Array) -> jax.Array:
  """Returns x [.., H], on CPU through a product with the identity, which is exact.

  XLA on CPU fuses cosine and sine into every rotation and computes them again for each head of
  each layer, in both passes; through a product it never fuses. (Barriers are gone by then.)
  """

  def through_identity(x):
    return jnp.matmul(x, jnp.eye(x.shape[-1], dtype=x.dtype), precision=lax.Precision.HIGHEST)

  return lax.platform_dependent(x, cpu=through_identity, default=lambda x: x)


@jax.custom_vjp
def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Computes x [.., D] @ kernel [D, F] in their dtype."""
  return _rounded_product(x, kernel, kernel_axis=0)


def _project_backward(saved, g):
  x, kernel = saved
  flat = lambda y: y.reshape(-1, y.shape[-1])
  dx = _rounded_product(g, kernel, kernel_axis=1)
  return dx, sum_over_rows(flat(x), flat(g)).astype(kernel.dtype)


project.defvjp(lambda x, kernel: (project(x, kernel), (x, kernel)), _project_backward)


def _rounded_product(x: jax.Array, kernel: jax.Array, kernel_axis: int) -> jax.Array:
  """A product in the operands' dtype, over the last axis of x and one of the kernel's.

  On CPU a bfloat16 product with a bfloat16 result takes a path two to ten times slower than one
  with a float32 result, which is then rounded.
  """
  dims = (((x.ndim - 1,), (kernel_axis,)), ((), ()))
  wide = lambda x, kernel: lax.dot_general(x, kernel, dims, preferred_element_type=jnp.float32)
  plain = lambda x, kernel: lax.dot_general(x, kernel, dims)
  if x.dtype == jnp.float32:
    return plain(x, kernel)
  return lax.platform_dependent(
    x, kernel, cpu=lambda x, kernel: wide(x, kernel).astype(x.dtype), default=plain
  )


def product(a: jax.Array, b: jax.Array) -> jax.Array:
  """The float32 product of a [.., M, K] and b [.., K, N].

  In bfloat16 its cotangent is rounded to that, so that the gradients' products are of bfloat16,
  too, and sum in float32. (jax would multiply by the float32 cotangent.)
  """
  return jnp.matmul(a, b) if a.dtype == jnp.float32 else _half_product(a, b)


@jax.custom_vjp
def _half_product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _half_product_backward(saved, g):
  a, b = saved
  g = g.astype(a.dtype)
  da = jnp.einsum("...mn,...kn->...mk", g, b, preferred_element_type=jnp.float32)
  return da.astype(a.dtype), sum_over_rows(a, g).astype(b.dtype)


_half_product.defvjp(lambda a, b: (_half_product(a, b), (a, b)), _half_product_backward)


def scores_of(hidden: jax.Array, rows: jax.Array) -> jax.Array:
  """Products in float32 of hidden [.., D] with each of the rows [V, D] -> [.., V].

  XLA on CPU copies a transposed matrix, which an embedding of a whole vocabulary is too large for.
  """
  dims = (((hidden.ndim - 1,), (1,)), ((), ()))
  return lax.dot_general(hidden, rows, dims, preferred_element_type=jnp.float32)


def sum_over_rows(a: jax.Array, g: jax.Array) -> jax.Array:
  """a^T g [.., K, N] of a [.., M, K] and g [.., M, N], added up in float32: a weight's gradient.

  On CPU a float32 product takes a^T g as it stands. (jax's own form is (g^T a)^T, for which XLA
  copies g into transposed order, fused with what made it: five times slower where that is SwiGLU's
  backward arithmetic.) A bfloat16 one runs at a third of its rate unless the rows are the left
  side's last axis; so the narrower side is transposed.

  Returns:
    float32, or rounded to the operands' dtype.
  """
  if a.dtype == jnp.float32:
    return jnp.einsum("...mk,...mn->...kn", a, g)

  def on_cpu(a, g):
    wide = lambda x, y: jnp.matmul(_transposed(x), y, preferred_element_type=jnp.float32)
    if a.shape[-1] <= g.shape[-1]:
      return wide(a, g)
    # Rounded first: XLA would fold the transpose into a product that it does not have.
    return jnp.swapaxes(wide(g, a).astype(a.dtype), -1, -2).astype(jnp.float32)

  plain = lambda a, g: jnp.einsum("...mk,...mn->...kn", a, g, preferred_element_type=jnp.float32)
  return lax.platform_dependent(a, g, cpu=on_cpu, default=plain)


def _transposed(x: jax.Array) -> jax.Array:
  """Swaps the last two axes. XLA folds a plain transpose back into a product, not reversals."""
  return jnp.flip(jnp.swapaxes(jnp.flip(x, -2), -1, -2), -1)


def as_bits(x: jax.Array) -> jax.Array:
  """16-bit numbers as integers, which XLA on CPU moves as they are.

  For anything but a product it converts a bfloat16 array to float32 and back, also where nothing is
  computed: the weights of all layers to take those of one, what all layers keep for the backward
  pass to add what one keeps, all embeddings to look some up.
  """
  return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def from_bits(bits: jax.Array, dtype: Any) -> jax.Array:
  """What `as_bits` made of an array of this dtype."""
  return bits if bits.dtype == dtype else lax.bitcast_convert_type(bits, dtype)


@jax.custom_jvp
def kept(x: jax.Array) -> jax.Array:
  """Returns x, which rematerialisation may keep under the name `KEPT`, as bits."""
  return from_bits(checkpoint_name(as_bits(x), KEPT), x.dtype)


# Not `kept` again, into which rematerialisation would not look.
kept.defjvp(lambda primals, tangents: (kept.fun(*primals), *tangents))


def flat(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """Applies a function of tokens [M, D] to x [.., D]."""
  out = function(x.reshape(-1, x.shape[-1]))
  return out.reshape(*x.shape[:-1], out.shape[-1])


def over_first(mapped: Callable[..., Any], function: Callable[..., Any], *args: Any) -> Any:
  """Maps over the arguments' first axis; an axis of one is left out instead.

  Args:
    mapped: `jax.vmap` or `lax.map`, as a function of the function and the arguments.
    function: of arguments without that axis.
    args: trees of arrays that have it.
  """
  if jax.tree.leaves(args)[0].shape[0] > 1:
    return mapped(function, *args)
  one = function(*jax.tree.map(lambda x: x[0], args))
  return jax.tree.map(lambda x: x[None], one)
