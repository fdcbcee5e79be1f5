"""Where a step's time goes: a trace of JAX's profiler, and a table of seconds by phase."""

import itertools
import logging
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax

from grpo_jax.report.tables import Row, as_text
from grpo_jax.runs import hosts
from grpo_jax.runs.trackers import read_metrics

PHASE = "seconds/"  # metrics of this prefix are the phases of a step
log = logging.getLogger(__name__)


@contextmanager
def trace(folder: Path) -> Iterator[None]:
  """Traces what runs inside into `folder`, for TensorBoard's profile page, XProf or Perfetto."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # every Python call would be most of the file
  with jax.profiler.trace(str(folder), profiler_options=options):
    yield


def profiled_steps(steps: Iterable[int], run_dir: Path, count: int) -> Iterator[int]:
  """Yields the steps of a training loop and traces the second to the (count + 1)-th of them.

  The first one compiles, which would hide the rest. Trace and table go to `<run_dir>/profile`.

  Args:
    steps: what the loop runs over; each step's metrics must be logged before the next is taken.
    run_dir: the run folder.
    count: steps to trace; 0 leaves everything as it is.
  """
  steps, folder = iter(steps), run_dir / "profile"
  if not count:
    yield from steps
    return
  yield from itertools.islice(steps, 1)
  traced = []
  with trace(folder):
    for step in itertools.islice(steps, count):
      traced.append(step)
      yield step
  if traced and hosts.is_first():  # which is the one that writes the metrics
    rows = {row["step"]: row for row in read_metrics(run_dir / "metrics.jsonl")}
    table = phase_table([rows[step] for step in traced])
    (folder / "seconds.txt").write_text(table + "\n", encoding="utf-8")
    log.info("%d traced steps: %s\n%s", len(traced), folder, table)
  yield from steps


def phase_table(records: Sequence[Mapping[str, float]]) -> str:
  """A table of seconds by phase, the longest first.

  Args:
    records: the metrics of some steps; those that begin with `seconds/` are its phases.
  """
  phases = {
    name.removeprefix(PHASE): [record[name] for record in records]
    for name in records[0]
    if name.startswith(PHASE)
  }
  whole = sum(map(sum, phases.values())) or 1.0
  longest_first = sorted(phases.items(), key=lambda item: -sum(item[1]))
  header: Row = ("phase", "share", "median s", "least s", "most s")
  rows: list[Row] = [
    (
      name,
      f"{sum(seconds) / whole:.1%}",
      *(f"{f(seconds):.4f}" for f in (statistics.median, min, max)),
    )
    for name, seconds in longest_first
  ]
  return as_text(header, rows, grouped=False)
