"""Metric logging: metrics.jsonl always, TensorBoard and MLflow when asked."""

import importlib
import json
import logging
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args

from grpo_jax.files.atomic import write_text
from grpo_jax.files.redaction import redacted
from grpo_jax.runs.folder import whole_lines

TrackerName = Literal["tensorboard", "mlflow"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)
MLFLOW_EXPERIMENT = "grpo_jax"
log = logging.getLogger(__name__)
# MLflow takes at most so many parameters a call, and so many characters a value.
MLFLOW_PARAMS_AT_ONCE, MLFLOW_PARAM_LENGTH = 100, 6000


class Tracker(Protocol):
  """A metrics backend beside metrics.jsonl."""

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    """Takes the metrics of one step; what is not finite has been left out."""

  def close(self, failed: bool) -> None:
    """Writes what is left and marks the run as ended."""


class Tracking:
  """Writes the metrics of a run; a context manager.

  A resumed run continues the same files: what an interrupted one wrote at or after `start_step` is
  removed, so that metrics.jsonl ends up as if the run had never stopped.

  Args:
    run_dir: the run folder; it is made when missing.
    track: which of `tensorboard` and `mlflow` to write to as well.
    start_step: the first step that will be logged.
    config: the run's settings, shown by MLflow as parameters; may be nested.

  Raises:
    ValueError: an unknown tracker.
    ModuleNotFoundError: a tracker's library is not installed; the message says how to.
  """

  def __init__(
    self,
    run_dir: Path | str,
    track: Sequence[str] = (),
    *,
    start_step: int = 0,
    config: Mapping[str, Any] | None = None,
  ) -> None:
    for name in track:
      if name not in TRACKERS:
        raise ValueError(f"tracker {name!r}; expected one of {', '.join(TRACKERS)}")
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    openers: Mapping[str, Callable[..., Tracker]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow}
    self._trackers: dict[str, Tracker] = {
      name: openers[name](run_dir, start_step, config or {}) for name in dict.fromkeys(track)
    }
    path = run_dir / "metrics.jsonl"
    if path.exists():
      write_text(path, "".join(text for text, _ in whole_lines(path)[:start_step]))
    self._file = path.open("a", encoding="utf-8")

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes one line and flushes it.

    Args:
      step: of the training loop.
      metrics: numbers, or arrays of one number. What is not finite becomes `null` in the file.
    """
    numbers = {name: _number(value) for name, value in metrics.items() if name != "step"}
    line = {"step": step, **{k: v if math.isfinite(v) else None for k, v in numbers.items()}}
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    for name, tracker in list(self._trackers.items()):
      try:
        tracker.log(step, finite)
      except Exception:
        # A tracking server that is away must not end a training run: the file has every number.
        said = redacted(traceback.format_exc())  # it names the server's URL
        log.error("--track=%s failed at step %d and is off from here\n%s", name, step, said)
        del self._trackers[name]

  def sync(self) -> None:
    """Waits until the lines are on the disk: without them a checkpoint after them is of no use."""
    os.fsync(self._file.fileno())

  def close(self, failed: bool = False) -> None:
    """Closes the file and the trackers; may be called twice.

    Args:
      failed: mark the run as failed where the tracker can.
    """
    self._file.close()
    for name, tracker in self._trackers.items():
      try:
        tracker.close(failed)
      except Exception:
        said = redacted(traceback.format_exc())
        log.error("--track=%s could not be closed\n%s", name, said)
    self._trackers = {}

  def __enter__(self) -> Self:
    return self

  def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
    self.close(failed=error is not None)


def read_metrics(path: Path | str) -> list[dict[str, float]]:
  """Reads a metrics.jsonl; `null` becomes NaN, and a last line cut short is left out."""
  lines = Path(path).read_text(encoding="utf-8").split("\n")
  # Every whole line ends with a newline, so that the last piece is empty or cut short.
  return [
    {name: math.nan if value is None else value for name, value in json.loads(line).items()}
    for line in lines[:-1]
  ]


class _TensorBoard:
  """Event files in `<run_dir>/tensorboard`."""

  def __init__(self, run_dir: Path, start_step: int, config: Mapping[str, Any]) -> None:
    library = _library("tensorboardX", "tensorboard")
    self._writer = library.SummaryWriter(
      logdir=str(run_dir / "tensorboard"),
      purge_step=start_step or None,
      # File names hold the time in whole seconds only: a quick resume would overwrite the first.
      filename_suffix=f".from_step_{start_step}",
    )
    if not start_step:
      self._writer.add_text("config", f"```json\n{json.dumps(config, indent=2, default=str)}\n```")

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
      self._writer.add_scalar(name, value, step)

  def close(self, failed: bool) -> None:
    self._writer.close()


class _MLflow:
  """One MLflow run, on the server of MLFLOW_TRACKING_URI or in `mlflow.db` beside the run folder.

  The run's id is kept in the run folder: a resumed run continues it.
  """

  def __init__(self, run_dir: Path, start_step: int, config: Mapping[str, Any]) -> None:
    library = _library("mlflow", "mlflow")
    self._metric = library.entities.Metric
    beside = run_dir.resolve().parent
    local = "MLFLOW_TRACKING_URI" not in os.environ
    self._client = library.MlflowClient(f"sqlite:///{beside / 'mlflow.db'}" if local else None)
    id_file = run_dir / "mlflow_run_id.txt"
    if start_step and id_file.exists():
      self._run_id = id_file.read_text().strip()
      self._client.update_run(self._run_id, status="RUNNING")
      return
    if experiment := self._client.get_experiment_by_name(MLFLOW_EXPERIMENT):
      experiment_id = experiment.experiment_id
    else:
      artifacts = (beside / "mlflow").as_uri() if local else None
      experiment_id = self._client.create_experiment(MLFLOW_EXPERIMENT, artifacts)
    run = self._client.create_run(experiment_id, run_name=run_dir.resolve().name)
    self._run_id = run.info.run_id
    write_text(id_file, self._run_id + "\n")
    import jax  # here, for who reads metrics does without

    leaves = jax.tree.leaves_with_path(config, is_leaf=lambda x: not isinstance(x, dict))
    params = [
      library.entities.Param(
        jax.tree_util.keystr(path, simple=True, separator="."), str(value)[:MLFLOW_PARAM_LENGTH]
      )
      for path, value in leaves
    ]
    for start in range(0, len(params), MLFLOW_PARAMS_AT_ONCE):
      self._client.log_batch(self._run_id, params=params[start : start + MLFLOW_PARAMS_AT_ONCE])

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    now = int(time.time() * 1000)
    self._client.log_batch(
      self._run_id, metrics=[self._metric(k, float(v), now, step) for k, v in metrics.items()]
    )

  def close(self, failed: bool) -> None:
    self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def _library(module: str, extra: TrackerName) -> Any:
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"--track={extra} needs {module}: pip install 'grpo_jax[{extra}]'"
    ) from error


def _number(value: Any) -> int | float:
  """A plain number from a number or an array of one."""
  plain = value.item() if hasattr(value, "item") else value
  if isinstance(plain, bool | int | float):
    return plain
  raise TypeError(f"a metric must be a number, got {value!r}")
