"""What is done for XLA on CPU alone, with what each costs there otherwise (jax 0.10, two cores).

Other platforms get the plain form. Where the two are different programs the choice is made when a
program is lowered (`lax.platform_dependent`), so that one compiled for a TPU on a machine without
any is the TPU's. The rest is the same arithmetic in another shape, free elsewhere:

* keys are cached transposed, `[.., H, S]` (`kv_cache.py`): a product with queries takes them as
  they lie;
* tokens are one axis, `[P * L, D]`, in a layer, the last norm and the head (`flat`): sums over an
  array that begins with an axis of one are up to ten times slower;
* `over_first` leaves such an axis out of attention and of the head's chunks for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


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
  """Computes x [.., D] @ kernel [D, F]; on CPU the weight's gradient is x^T g, not (g^T x)^T.

  XLA on CPU copies the left side of that product into transposed order, fused with whatever made
  it. For a cotangent that is SwiGLU's whole backward arithmetic, five times slower so.
  """
  return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _project_backward(saved, g):
  x, kernel = saved
  leading = tuple(range(x.ndim - 1))
  sum_over_tokens = lambda a, b: lax.dot_general(a, b, ((leading, leading), ((), ())))
  dx = lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ())))
  dkernel = lax.platform_dependent(
    x, g, cpu=sum_over_tokens, default=lambda x, g: sum_over_tokens(g, x).T
  )
  return dx, dkernel


project.defvjp(lambda x, kernel: (project(x, kernel), (x, kernel)), _project_backward)


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
