"""Checkpoints of a run, through orbax: written asynchronously, restored into any sharding.

A checkpoint counts once it is sealed: `SHA256SUMS` in its folder (the format of `sha256sum -c`)
lists every file of it, and is written last. What a crash cut off or a disk damaged is seen by that.
"""

import hashlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from grpo_jax.runs import hosts
from grpo_jax.files.atomic import write_text
from grpo_jax.types import TrainState

SEAL = "SHA256SUMS"
log = logging.getLogger(__name__)


class Checkpoints:
  """The `checkpoints/` folder of a run; a context manager that waits for its last write.

  Args:
    run_dir: the run folder.
    keep: how many of the newest checkpoints stay; the best one by evaluation stays as well.
    read_only: restore only; nothing in the folder is touched.
  """

  def __init__(self, run_dir: Path | str, keep: int = 2, *, read_only: bool = False) -> None:
    self._dir = (Path(run_dir) / "checkpoints").absolute()
    self._seals: dict[int, threading.Thread] = {}
    self._written = threading.Event()  # orbax is done with all that was saved
    evaluated = lambda found: found["eval"]
    best = BestN(n=1, get_metric_fn=evaluated, keep_checkpoints_without_metrics=False)
    self._manager = ocp.CheckpointManager(
      self._dir,
      item_handlers={"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
      options=ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
        best_fn=evaluated,  # without it metrics are not stored, and forgotten by the next process
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
      ),
    )

  def steps(self) -> list[int]:
    """The steps that have a checkpoint, good or not, in order."""
    return sorted(self._manager.all_steps())

  def newest_good(self, limit: int | None = None) -> int | None:
    """The newest step whose checkpoint is whole, or None; others are named in the log and skipped.

    Args:
      limit: newer ones than this do not count: the records beside them are missing.
    """
    for step in reversed(self.steps()):
      problem = self.problem(step, limit)
      if not problem:
        return step
      log.warning("skipping the checkpoint of step %d: %s", step, problem)
    return None

  def drop_after(self, step: int) -> None:
    """Deletes the checkpoints after `step`: a run that goes on from it writes its own."""
    for later in self.steps():
      if later > step:
        self._manager.delete(later)

  def is_cut_off(self, step: int) -> bool:
    """Whether the writing of a checkpoint never came to its end."""
    return not (self._dir / str(step) / SEAL).is_file()

  def problem(self, step: int, limit: int | None = None) -> str:
    """What is wrong with a checkpoint; empty when its files are as they were written.

    Args:
      step: its own.
      limit: a newer one than this has no complete records beside it.
    """
    folder = self._dir / str(step)
    if limit is not None and step > limit:
      return f"metrics.jsonl is whole up to step {limit} only"
    if self.is_cut_off(step):
      return f"{folder / SEAL} is missing, so its writing was cut off"
    wanted = {}
    for line in (folder / SEAL).read_bytes().decode(errors="replace").splitlines():
      digest, _, name = line.partition("  ")
      wanted[name] = digest
    found = _digests(folder)
    for name in sorted(wanted.keys() | found.keys()):
      if name not in found:
        return f"{folder / name} is missing"
      if wanted.get(name) != found[name]:
        return f"{folder / name} is damaged (its SHA-256 is not the one in {SEAL})"
    return ""

  def save(
    self, state: TrainState, meta: Mapping[str, Any], eval_reward: float | None = None
  ) -> None:
    """Starts writing `state` and returns once it is copied off the device.

    Args:
      state: the whole train state; it may be donated right afterwards.
      meta: JSON values that belong to it.
      eval_reward: its mean reward on held-out tasks, if it was evaluated.
    """
    step = int(state.step)
    if step in self._seals:
      return
    if step in self.steps():  # of an earlier process
      if not self.problem(step):
        return
      self._manager.delete(step)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_storable(state)), meta=ocp.args.JsonSave(dict(meta))
      ),
      metrics=None if eval_reward is None else {"eval": eval_reward},
    )
    self._written.clear()
    self._seals[step] = threading.Thread(target=self._seal, args=(step,), daemon=True)
    self._seals[step].start()

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint into the shapes, dtypes and shardings of `like`.

    One of version 0.1, which stored each layer for itself, is stacked on the way.

    Args:
      step: from `newest_good`.
      like: a state of the same run, with the sharding that is wanted now.

    Raises:
      ValueError: the checkpoint holds other arrays than `like`.
    """
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(like))
    by_layer = "layers_0" in self._manager.item_metadata(step)["state"]["params"]  # as 0.1 wrote it
    if by_layer:
      shapes = shapes_by_layer(shapes)
    read = self._manager.restore(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes), meta=ocp.args.JsonRestore()),
    )
    stored = stacked_again(read["state"], _storable(like)) if by_layer else read["state"]
    key = jax.random.wrap_key_data(stored["key"], impl=jax.random.key_impl(like.key))
    return TrainState(stored["params"], stored["opt_state"], stored["step"], key), read["meta"]

  def wait(self) -> None:
    """Blocks until everything that was saved is on disk and sealed."""
    try:
      self._manager.wait_until_finished()
    finally:
      self._written.set()
      for thread in self._seals.values():
        thread.join()

  def _seal(self, step: int) -> None:
    """Waits until orbax has given the checkpoint its final name, then lists its files."""
    folder = self._dir / str(step)
    while not folder.is_dir() and not self._written.wait(0.02):
      continue
    if folder.is_dir() and hosts.is_first():
      try:
        sums = "".join(f"{digest}  {name}\n" for name, digest in _digests(folder).items())
        write_text(folder / SEAL, sums)
      except OSError:
        # Without its seal it does not count; on a full disk the next write will say so.
        log.exception("the checkpoint of step %d could not be sealed", step)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
    if error and jax.process_count() > 1:
      return  # closing waits for all hosts, and one that failed must not wait for one that is gone
    try:
      self.wait()
    finally:
      self._manager.close()


def _digests(folder: Path) -> dict[str, str]:
  """The SHA-256 of every file of a checkpoint but its seal, by relative path."""
  found = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file() and path.relative_to(folder).name != SEAL:
      with path.open("rb") as file:
        found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
  return found


def _storable(state: TrainState) -> dict[str, Any]:
  """Typed keys are stored as their numbers."""
  return {
    "params": state.params,
    "opt_state": state.opt_state,
    "step": state.step,
    "key": jax.random.key_data(state.key),
  }


def shapes_by_layer(shapes: Any) -> Any:
  """Cuts `{"layers": {..: [N, ..]}}` anywhere in a tree of shapes into N, as 0.1 stored them.

  Args:
    shapes: a tree of `jax.ShapeDtypeStruct`, each with its sharding or without one.

  Returns:
    The same tree with `{"layers_0": {..: [..]}, "layers_1": ..}` in those places.
  """

  def cut(leaf):
    place = leaf.sharding
    if isinstance(place, NamedSharding):
      place = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=place)

  def apart(part):
    if not _has_layers(part):
      return part
    stack = part["layers"]
    names = [f"layers_{n}" for n in range(jax.tree.leaves(stack)[0].shape[0])]
    rest = {name: x for name, x in part.items() if name != "layers"}
    return rest | {name: jax.tree.map(cut, stack) for name in names}

  return jax.tree.map(apart, shapes, is_leaf=_has_layers)


def stacked_again(stored: Any, like: Any) -> Any:
  """Stacks what was read in the shapes of `shapes_by_layer`, placed as in `like`.

  Each layer's arrays are deleted once they are stacked, so one leaf at most is there twice.
  """

  def stack(leaf, *layers):
    stacked = jax.jit(lambda *x: jnp.stack(x), out_shardings=leaf.sharding)(*layers)
    stacked.block_until_ready()
    for layer in layers:
      layer.delete()
    return stacked

  def together(wanted, part):
    if not _has_layers(wanted):
      return part
    names = sorted((name for name in part if name not in wanted), key=lambda x: int(x[7:]))
    rest = {name: x for name, x in part.items() if name in wanted}
    return rest | {"layers": jax.tree.map(stack, wanted["layers"], *(part[n] for n in names))}

  return jax.tree.map(together, like, stored, is_leaf=_has_layers)


def _has_layers(part: Any) -> bool:
  return isinstance(part, dict) and "layers" in part
