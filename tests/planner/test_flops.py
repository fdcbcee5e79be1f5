"""Operations are counted through loops, branches and the backward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from grpo_jax.planner.flops import count_flops

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 8), jnp.float32)
ONE = 2 * 4 * 8 * 8  # of x @ w


def count(function, *shapes, **options):
  return count_flops(jax.jit(function).trace(*shapes).jaxpr, **options)


def test_a_product_and_its_gradient():
  assert count(lambda x, w: x @ w, X, W) == ONE
  loss = lambda w, x: jnp.sum(jnp.sin(x @ w))
  assert count(jax.grad(loss), W, X) == 2 * ONE  # forward, and w's gradient
  assert count(jax.grad(loss, argnums=(0, 1)), W, X) == 3 * ONE


def test_what_is_rematerialised_counts_again():
  two = lambda w, x: jnp.sum(jnp.sin(jnp.sin(x @ w) @ w))
  again = jax.checkpoint(two, prevent_cse=True)
  # Kept: 2 forward, 2 for w and 1 for the middle. Repeated: the first product and the second.
  assert count(jax.value_and_grad(two), W, X) == 5 * ONE
  assert count(jax.value_and_grad(again), W, X) == 7 * ONE


def test_loops_are_multiplied_out():
  scanned = lambda x, w: lax.scan(lambda c, _: (c @ w, None), x, None, length=6)[0]
  assert count(scanned, X, W) == 6 * ONE
  assert count(scanned, X, W, scan_trips=1) == ONE  # as XLA's cost analysis does
  endless = lambda x, w: lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x) @ w
  assert count(endless, X, W, while_trips=10) == 11 * ONE
  assert count(endless, X, W, while_trips=0) == ONE


def test_the_dearer_branch_counts():
  either = lambda x, w: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) @ w)
  assert count(either, X, W) == 2 * ONE


def test_what_no_result_needs_is_left_out():
  halves = lambda x, w: (x @ w, (x @ w) @ w)
  assert count(lambda x, w: jax.jit(halves)(x, w)[0], X, W) == ONE
  unused = lambda x, w: lax.scan(lambda c, _: (c, c @ w), x, None, length=6)[0]
  assert count(unused, X, W) == 0


def test_a_mapped_share_counts_for_every_device():
  mesh = AbstractMesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

  def mapped(x, w):
    with jax.sharding.use_abstract_mesh(mesh):
      inner = jax.shard_map(
        lambda x, w: x @ w, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"), axis_names={"fsdp"}
      )
      return inner(x, w)

  assert count(mapped, X, W) == ONE


def test_batched_products_and_several_axes():
  a = jax.ShapeDtypeStruct((3, 4, 5), jnp.float32)
  b = jax.ShapeDtypeStruct((3, 5, 7), jnp.float32)
  assert count(lambda a, b: jnp.einsum("nij,njk->nik", a, b), a, b) == 2 * 3 * 4 * 5 * 7
  assert count(lambda a: jnp.einsum("nij,mij->nm", a, a), a) == 2 * 3 * 3 * 20
