"""Checkpoints of a run, through orbax: written asynchronously, restored into any sharding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from grpo_jax.types import TrainState


class Checkpoints:
  """The `checkpoints/` folder of a run; a context manager that waits for its last write.

  Args:
    run_dir: the run folder.
    keep: how many of the newest checkpoints stay.
  """

  def __init__(self, run_dir: Path | str, keep: int = 2) -> None:
    self._manager = ocp.CheckpointManager(
      (Path(run_dir) / "checkpoints").absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=True
      ),
    )

  def latest(self) -> int | None:
    """The newest finished checkpoint's step, or None; half-written ones do not count."""
    return self._manager.latest_step()

  def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
    """Starts writing `state` and returns once it is copied off the device.

    Args:
      state: the whole train state; it may be donated right afterwards.
      meta: JSON values that belong to it.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_storable(state)), meta=ocp.args.JsonSave(dict(meta))
      ),
    )

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint into the shapes, dtypes and shardings of `like`.

    Args:
      step: from `latest`.
      like: a state of the same run, with the sharding that is wanted now.
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
    """Blocks until everything that was saved is on disk."""
    self._manager.wait_until_finished()

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._manager.close()


def _storable(state: TrainState) -> dict[str, Any]:
  """Typed keys are stored as their numbers."""
  return {**state._asdict(), "key": jax.random.key_data(state.key)}
