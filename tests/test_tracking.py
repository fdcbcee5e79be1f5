"""metrics.jsonl, and the real TensorBoard and MLflow."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest

from grpo_jax.runs.trackers import Tracking, read_metrics


def log_steps(run_dir, steps, track=(), start_step=0, config=None):
  with Tracking(run_dir, track, start_step=start_step, config=config) as tracking:
    for step in steps:
      tracking.log(step, {"reward": step / 10, "rewards/tool/mean": 0.5})


def test_each_step_is_on_disk_when_it_was_logged(tmp_path):
  tracking = Tracking(tmp_path / "run")
  tracking.log(0, {"reward": np.float32(0.5), "num_tokens": np.int64(7), "loss": 0.25})
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {"step": 0, "reward": 0.5, "num_tokens": 7, "loss": 0.25}
  ]
  tracking.close()


def test_what_is_not_finite_is_null_on_disk_and_nan_when_read(tmp_path):
  with Tracking(tmp_path) as tracking:
    tracking.log(3, {"loss": math.nan, "ratio": math.inf})
  text = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(text, parse_constant=pytest.fail) == {"step": 3, "loss": None, "ratio": None}
  (found,) = read_metrics(tmp_path / "metrics.jsonl")
  assert found["step"] == 3 and math.isnan(found["loss"]) and math.isnan(found["ratio"])


def test_a_metric_must_be_one_number(tmp_path):
  with Tracking(tmp_path) as tracking:
    with pytest.raises(TypeError, match="must be a number"):
      tracking.log(0, {"reward": "high"})
    with pytest.raises(ValueError):
      tracking.log(0, {"reward": np.zeros(2)})


def test_a_resumed_run_leaves_the_file_of_one_that_never_stopped(tmp_path):
  log_steps(tmp_path / "whole", range(6))
  log_steps(tmp_path / "cut", range(5))  # checkpoint at 3, killed while writing step 5
  with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 5, "rew')
  assert [entry["step"] for entry in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == [
    0, 1, 2, 3, 4,
  ]  # fmt: skip
  log_steps(tmp_path / "cut", range(3, 6), start_step=3)
  files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
  assert files[0] == files[1]


def test_unknown_trackers_are_refused_with_the_valid_ones(tmp_path):
  with pytest.raises(ValueError, match="'wandb'; expected one of tensorboard, mlflow"):
    Tracking(tmp_path / "run", ("wandb",))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("tracker", "module"), [("tensorboard", "tensorboardX"), ("mlflow", "mlflow")]
)
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, tracker, module):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ModuleNotFoundError, match=rf"pip install 'grpo_jax\[{tracker}\]'"):
    Tracking(tmp_path, (tracker,))
  log_steps(tmp_path, range(2))  # the file needs neither
  assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_tensorboard_reads_every_step_once_after_a_resume(tmp_path):
  pytest.importorskip("tensorboardX")
  accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
  log_steps(tmp_path, range(5), ("tensorboard",), config={"seed": 1})
  log_steps(tmp_path, range(3, 6), ("tensorboard",), start_step=3)
  found = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
  found.Reload()
  rewards = {event.step: event.value for event in found.Scalars("reward")}
  assert rewards == pytest.approx({step: step / 10 for step in range(6)})
  assert len(found.Scalars("reward")) == 6
  assert "rewards/tool/mean" in found.Tags()["scalars"]


@pytest.fixture
def mlflow(monkeypatch):
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  return pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """One folder of runs: they share mlflow.db, whose tables take seconds to make."""
  return tmp_path_factory.mktemp("runs")


def test_mlflow_shows_settings_metrics_and_how_the_run_ended(runs, mlflow):
  settings = {"seed": 1, "flags": {"steps": 3}, "long": "x" * 10_000} | {
    f"option_{i}": i for i in range(150)
  }
  log_steps(runs / "first", range(3), ("mlflow",), config=settings)
  client = mlflow.MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
  run_id = (runs / "first" / "mlflow_run_id.txt").read_text().strip()
  run = client.get_run(run_id)
  assert run.info.run_name == "first" and run.info.status == "FINISHED"
  assert run.data.params["seed"] == "1" and run.data.params["flags.steps"] == "3"
  assert run.data.params["option_149"] == "149"
  history = client.get_metric_history(run_id, "reward")
  assert [(m.step, m.value) for m in history] == [(0, 0.0), (1, 0.1), (2, 0.2)]

  # A resumed run goes on in the same MLflow run, and a crash shows.
  with (
    pytest.raises(KeyboardInterrupt),
    Tracking(runs / "first", ("mlflow",), start_step=3) as tracking,
  ):
    tracking.log(3, {"reward": 0.3})
    raise KeyboardInterrupt
  assert (runs / "first" / "mlflow_run_id.txt").read_text().strip() == run_id
  assert client.get_run(run_id).info.status == "FAILED"
  assert len(client.get_metric_history(run_id, "reward")) == 4


def test_a_tracker_that_fails_does_not_end_the_run(runs, mlflow, caplog):
  with Tracking(runs / "second", ("mlflow",)) as tracking:
    tracking.log(0, {"reward": 0.0})
    run_id = (runs / "second" / "mlflow_run_id.txt").read_text().strip()
    # Someone deletes the run on the server, which then refuses new metrics.
    mlflow.MlflowClient(f"sqlite:///{runs / 'mlflow.db'}").delete_run(run_id)
    tracking.log(1, {"reward": 0.1})
    tracking.log(2, {"reward": 0.2})
  assert [entry["step"] for entry in read_metrics(runs / "second" / "metrics.jsonl")] == [0, 1, 2]
  assert sum("is off from here" in message for message in caplog.messages) == 1


def test_what_a_tracker_says_when_it_fails_is_logged_without_the_server_s_password(
  tmp_path, caplog
):
  class Away:
    def log(self, step, metrics):
      raise ConnectionError("POST http://bob:s3cret@server/api: nobody there")

    def close(self, failed):
      raise ConnectionError("POST http://bob:s3cret@server/api: still nobody")

  for call in ("log", "close"):
    tracking = Tracking(tmp_path / call)
    tracking._trackers = {"mlflow": Away()}
    if call == "log":
      tracking.log(0, {"reward": 0.0})
    tracking.close()
  assert "http://***@server/api: nobody there" in caplog.text
  assert "http://***@server/api: still nobody" in caplog.text and "s3cret" not in caplog.text
