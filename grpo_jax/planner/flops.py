"""FLOPs of a traced program's matrix products, with loops multiplied out.

XLA's cost analysis counts a loop's body once. A jaxpr has the trip count of every scan, and the
backward pass and what rematerialization repeats stand in it too, so counting there is exact for
the products, which are all that matters: 2 M N K for each. What no result needs (the gradient of a
frozen kernel, say) is left out, as XLA leaves it out.
"""

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr


def count_flops(program: Any, *, while_trips: int = 1, scan_trips: int | None = None) -> float:
  """Operations of all matrix products of a program, over all devices.

  Args:
    program: `jitted.trace(..).jaxpr`, closed.
    while_trips: iterations of each `while` loop (a decoding loop: the most it can make).
    scan_trips: iterations of each scan; None takes its length. 1 for both counts as XLA does.

  Returns:
    2 M N K summed over the products that run; the dearer branch of a `cond`.
  """
  needed, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
  return _count(needed, while_trips, scan_trips)


def _count(jaxpr: Any, while_trips: int, scan_trips: int | None) -> float:
  total = 0.0
  for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
      total += 2.0 * depth * math.prod(eqn.outvars[0].aval.shape)
    inner = [
      _count(sub, while_trips, scan_trips) for value in params.values() for sub in _jaxprs(value)
    ]
    times = 1
    if name == "scan":
      times = params["length"] if scan_trips is None else scan_trips
    elif name == "shard_map":  # inside stands one device's share
      times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    elif name == "while":
      times = while_trips
    total += times * (max(inner, default=0.0) if name == "cond" else sum(inner))
  return total


def _jaxprs(value: Any) -> list[Any]:
  if isinstance(value, (Jaxpr, ClosedJaxpr)):
    return [value]
  if isinstance(value, (tuple, list)):
    return [sub for item in value for sub in _jaxprs(item)]
  return []
