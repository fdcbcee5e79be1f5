"""Runs that are refused: which, in what words, and that nothing is left behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import command

from grpo_jax.runs import folder as run_folder
from grpo_jax.train import train


def test_another_process_on_the_folder_is_refused(settings, tmp_path):
  config = dataclasses.replace(settings, run_dir=str(tmp_path / "run"))
  program = (
    "import sys, time\nfrom pathlib import Path\nfrom grpo_jax.runs.folder import claimed\n"
    "with claimed(Path(sys.argv[1])):\n  print('claimed', flush=True)\n  time.sleep(60)\n"
  )
  holder = subprocess.Popen(
    [sys.executable, "-c", program, config.run_dir], stdout=subprocess.PIPE, text=True
  )
  try:
    assert holder.stdout is not None and holder.stdout.readline() == "claimed\n"
    with pytest.raises(ValueError, match=rf"in use by another process \(pid {holder.pid}\)"):
      train(config)
    assert not (tmp_path / "run" / "config.json").exists()
  finally:
    holder.kill()
    holder.wait()
  with run_folder.claimed(tmp_path / "run"):  # the system freed it
    pass


@pytest.mark.parametrize("changed", ["data", "model", "reward", "flag"])
def test_what_alters_the_future_is_refused_unless_allowed(copied, tmp_path, changed):
  folder, config = copied
  shutil.copytree(Path(config.model).parent, tmp_path / "own")
  move = lambda path: str(tmp_path / "own" / Path(path).relative_to(Path(config.model).parent))
  own = dataclasses.replace(
    config, model=move(config.model), data=move(config.data), reward=move(config.reward),
    eval_data=tuple((n, move(p)) for n, p in config.eval_data),
  )  # fmt: skip
  record = json.loads((folder / "config.json").read_text())
  record |= {k: v for k, v in json.loads(json.dumps(dataclasses.asdict(own))).items()
             if k in ("model", "data", "reward", "eval_data")}  # fmt: skip
  record["reward_sha256"] = {own.reward.split(":")[0]: next(iter(record["reward_sha256"].values()))}
  (folder / "config.json").write_text(json.dumps(record))
  if changed == "data":
    lines = Path(own.data).read_text().splitlines(keepends=True)
    Path(own.data).write_text("".join(lines[::-1]))
    what = r"data_sha256 \("
  elif changed == "model":
    weights = Path(own.model) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    what = r"model_sha256 \("
  elif changed == "reward":
    path = Path(own.reward.split(":")[0])
    path.write_text(path.read_text() + "# a comment\n")
    what = r"reward_sha256 \("
  else:
    own = dataclasses.replace(own, learning_rate=0.02)
    what = r"learning_rate \(0.01 then, 0.02 now\)"
  with pytest.raises(ValueError, match=what):
    train(own)
  train(dataclasses.replace(own, allow_changes=True))  # nothing is left to do but the report


def base_of(folder: Path) -> tuple[dict, list[dict]]:
  """The summary and the rows of the evaluation before training."""
  rows = (folder / "eval" / "base_held_out.jsonl").read_text().splitlines()
  summary = json.loads((folder / "eval_base.json").read_text())["held_out"]
  return summary, [json.loads(row) for row in rows]


@pytest.mark.parametrize("changed", ["reward", "length", "nothing", "unknown"])
def test_the_gain_is_between_evaluations_of_the_same_settings(copied, tmp_path, changed):
  folder, config = copied
  summary, before = base_of(folder)
  if changed == "reward":
    (tmp_path / "other.py").write_text(
      "def high(completion, task):\n  return 1 - sum(map(ord, completion)) % 7 / 6\n"
    )
    config = dataclasses.replace(config, reward=f"{tmp_path / 'other.py'}:high")
  elif changed == "length":
    shorter = dataclasses.replace(config.grpo.sampling, max_tokens=3)
    config = dataclasses.replace(config, grpo=dataclasses.replace(config.grpo, sampling=shorter))
  else:  # a base of another policy: kept where it says that nothing changed, else made again
    before[0]["completion"] = "not the start's"
    text = "".join(json.dumps(row) + "\n" for row in before)
    (folder / "eval" / "base_held_out.jsonl").write_text(text)
  if changed == "unknown":
    del summary["settings"]
    (folder / "eval_base.json").write_text(json.dumps({"held_out": summary}))
  train(dataclasses.replace(config, allow_changes=True))
  found, after = base_of(folder)
  if changed == "reward":  # the start's completions, although the run goes on from its end
    assert [row["completion"] for row in after] == [row["completion"] for row in before]
    for old, new in zip(before, after, strict=True):
      assert new["reward"] == pytest.approx(1 - old["reward"])
  elif changed == "length":
    assert max(row["tokens"] for row in before) > 3 >= max(row["tokens"] for row in after)
    assert all(b["tokens"] >= a["tokens"] for a, b in zip(after, before, strict=True))
  else:
    assert (after[0]["completion"] == "not the start's") == (changed == "nothing")
  final = json.loads((folder / "eval_final.json").read_text())["held_out"]
  assert found["settings"] == final["settings"]


def test_a_read_only_folder_is_one_sentence(settings, tmp_path):
  (tmp_path / "file").write_text("in the way")
  arguments = command(settings, tmp_path / "file" / "run", 2)
  done = subprocess.run(arguments, capture_output=True, text=True)
  last = done.stderr.strip().splitlines()[-1]
  assert done.returncode == 1 and last.startswith("train_grpo: ") and "Not a directory" in last


@pytest.mark.parametrize("wrong", ["data", "prompts", "mesh", "weights"])
def test_a_refused_run_leaves_no_folder_behind(settings, tmp_path, wrong):
  config = dataclasses.replace(settings, run_dir=str(tmp_path / "runs" / "new" / "run"))
  if wrong == "data":
    config = dataclasses.replace(config, data=str(tmp_path / "nowhere.jsonl"))
  elif wrong == "prompts":
    config = dataclasses.replace(config, max_prompt_tokens=3)
  elif wrong == "mesh":
    config = dataclasses.replace(config, mesh="data:3")
  else:  # seen only once everything else is in order
    shutil.copytree(config.model, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = dataclasses.replace(config, model=str(tmp_path / "model"))
  before = sorted(tmp_path.iterdir())
  with pytest.raises(ValueError):
    train(config)
  assert sorted(tmp_path.iterdir()) == before
  (tmp_path / "runs" / "new" / "run").mkdir(parents=True)  # the user's own stays, and stays empty
  with pytest.raises(ValueError):
    train(config)
  assert not list((tmp_path / "runs" / "new" / "run").iterdir())


def test_a_refused_run_leaves_a_folder_as_it_was(copied):
  folder, config = copied
  (folder / ".lock").unlink()
  before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
  with pytest.raises(ValueError, match="seed"):
    train(dataclasses.replace(config, seed=7))
  assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before
