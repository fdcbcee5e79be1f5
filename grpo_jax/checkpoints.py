"""Checkpoints of a run, through orbax: written asynchronously, restored into any sharding.

A checkpoint counts once it is sealed: `SHA256SUMS` in its folder (the format of `sha256sum -c`)
lists every file of it, and is written last. What a crash cut off or a disk damaged is seen by that.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from grpo_jax import hosts
from grpo_jax.run_folder import write_text
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
    self._unsealed: set[int] = set()
    self._manager = ocp.CheckpointManager(
      self._dir,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(
          [
            LatestN(keep),
            BestN(
              n=1, get_metric_fn=lambda found: found["eval"], keep_checkpoints_without_metrics=False
            ),
          ]
        ),
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=self._seal_new),
      ),
    )

  def newest_good(self, limit: int | None = None) -> int | None:
    """The newest step whose checkpoint is whole, or None; others are named in the log and skipped.

    Args:
      limit: newer ones than this do not count: the records beside them are missing.
    """
    for step in sorted(self._manager.all_steps(), reverse=True):
      problem = self.problem(step)
      if not problem and limit is not None and step > limit:
        problem = f"metrics.jsonl is whole up to step {limit} only"
      if not problem:
        return step
      log.warning("skipping the checkpoint of step %d: %s", step, problem)
    return None

  def drop_after(self, step: int) -> None:
    """Deletes the checkpoints after `step`: a run that goes on from it writes its own."""
    for later in [found for found in self._manager.all_steps() if found > step]:
      self._manager.delete(later)

  def problem(self, step: int) -> str:
    """What is wrong with a checkpoint's files; empty when they are as they were written."""
    folder = self._dir / str(step)
    if not (folder / SEAL).is_file():
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
    if step in self._manager.all_steps():
      if not self.problem(step):
        return
      self._manager.delete(step)
    self._unsealed.add(step)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_storable(state)), meta=ocp.args.JsonSave(dict(meta))
      ),
      metrics=None if eval_reward is None else {"eval": eval_reward},
    )

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint into the shapes, dtypes and shardings of `like`.

    Args:
      step: from `newest_good`.
      like: a state of the same run, with the sharding that is wanted now.

    Raises:
      ValueError: the checkpoint holds other arrays than `like`.
    """
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(like))
    read = self._manager.restore(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes), meta=ocp.args.JsonRestore()),
    )
    stored = read["state"]
    key = jax.random.wrap_key_data(stored["key"], impl=jax.random.key_impl(like.key))
    return TrainState(stored["params"], stored["opt_state"], stored["step"], key), read["meta"]

  def wait(self) -> None:
    """Blocks until everything that was saved is on disk and sealed."""
    self._manager.wait_until_finished()

  def _seal_new(self) -> None:
    """Runs in orbax's thread after each commit."""
    for step in sorted(self._unsealed):
      folder = self._dir / str(step)
      if folder.is_dir():
        if hosts.is_first():
          sums = "".join(f"{digest}  {name}\n" for name, digest in _digests(folder).items())
          write_text(folder / SEAL, sums)
        self._unsealed.discard(step)

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
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
  return {**state._asdict(), "key": jax.random.key_data(state.key)}
