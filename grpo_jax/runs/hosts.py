"""Several hosts: JAX's own multi-controller runtime, and what its processes tell each other.

Every process runs the same program. Arrays are global; files, logs and trackers are process 0's.
With one process everything here is the identity.
"""

import logging
import os
import sys
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

# JAX's default is 100 s; a run must not hang for longer than a minute on a host that is gone.
HEARTBEAT_SECONDS = 30
# What tells JAX that this is one of several processes: Cloud TPU, SLURM, Open MPI, Kubernetes.
CLUSTER_VARIABLES = (
  "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS", "SLURM_NTASKS",
  "OMPI_COMM_WORLD_SIZE", "JAX_COORDINATOR_ADDRESS",
)  # fmt: skip
log = logging.getLogger(__name__)


def initialize(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
  """Joins the other hosts, before anything else touches JAX.

  Args:
    coordinator: `host:port` of process 0; empty lets JAX find it in the environment.
    processes: how many there are; 0 lets JAX find out.
    process: this one's number from 0; -1 lets JAX find out.

  Raises:
    ValueError: some of the three are given and some are not.
  """
  given = (bool(coordinator), processes > 0, process >= 0)
  if any(given) and not all(given):
    raise ValueError("--coordinator, --num_processes and --process_id go together")
  if all(given):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
      coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )
  elif _in_a_cluster():
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def _in_a_cluster() -> bool:
  several = lambda name: os.environ.get(name, "") not in ("", "1", "localhost")
  return any(several(name) for name in CLUSTER_VARIABLES)


def leave(error: BaseException) -> NoReturn:
  """Ends this process of several at once: an orderly end would wait for hosts that may be gone.

  The others notice by a failing collective or, at the latest, by the missing heartbeat.
  """
  if isinstance(error, jax.errors.JaxRuntimeError):
    said = (str(error).splitlines() or [""])[0]
    reason = f"a collective failed, so another host is gone or has failed ({said})"
  else:
    reason = str(error)
  print(
    f"process {jax.process_index()} of {jax.process_count()}: {reason}; run the same command on "
    "all hosts again to go on from the last checkpoint",
    file=sys.stderr, flush=True,
  )  # fmt: skip
  os._exit(1)


def is_first() -> bool:
  """Whether this process is the one that writes and logs."""
  return jax.process_index() == 0


def any_host(flag: bool) -> bool:
  """Whether the flag is up on any host; a collective: all hosts call it, equally often."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def fetch(tree: Any) -> Any:
  """Whole NumPy arrays of a tree of (global) arrays, on every host; a collective."""
  if jax.process_count() == 1:
    return jax.tree.map(np.asarray, tree)
  return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def share(count: int) -> slice:
  """This host's part of `count` things, contiguous; the parts cover them all."""
  hosts, own = jax.process_count(), jax.process_index()
  return slice(count * own // hosts, count * (own + 1) // hosts)


def gather_text(text: str) -> list[str]:
  """The text of every host, in the order of the hosts; a collective."""
  if jax.process_count() == 1:
    return [text]
  raw = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.asarray(len(raw)))
  padded = np.zeros(int(lengths.max()), np.uint8)
  padded[: len(raw)] = raw
  rows = multihost_utils.process_allgather(padded)
  return [bytes(row[:n]).decode() for row, n in zip(np.asarray(rows), lengths, strict=True)]


def from_first(number: int) -> int:
  """Process 0's number, on every host; a collective."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.asarray(number)))
