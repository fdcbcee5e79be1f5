"""Run folders with damaged and missing files: seen, repaired, or left as they are."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from small_run import assert_same_run

from grpo_jax.runs.checkpoints import SEAL, Checkpoints
from grpo_jax.train import train


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed"])
def test_damage_to_any_file_of_a_checkpoint_is_seen(whole, tmp_path, damage):
  files = [p.relative_to(whole) for p in (whole / "checkpoints" / "4").rglob("*") if p.is_file()]
  assert len(files) > 5
  for file in files:
    run = tmp_path / "run"
    shutil.copytree(whole / "checkpoints", run / "checkpoints")
    content = bytearray((run / file).read_bytes())
    if damage == "removed":
      (run / file).unlink()
    elif damage == "truncated":
      (run / file).write_bytes(content[: len(content) // 2] if content else b"x")
    else:
      content[len(content) // 2 : len(content) // 2 + 1] = bytes(
        [content[len(content) // 2] ^ 1] if content else b"x"
      )
      (run / file).write_bytes(content)
    with Checkpoints(run, read_only=True) as checkpoints:
      named = file if file.name != SEAL or damage == "removed" else Path(SEAL)
      assert str(named) in checkpoints.problem(4) or file.name == SEAL
      assert checkpoints.problem(4) and checkpoints.newest_good() == 2, file
    shutil.rmtree(run)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(copied, whole, caplog):
  folder, config = copied
  largest = max((folder / "checkpoints" / "4" / "state").rglob("*"), key=lambda p: p.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[100] ^= 16
  largest.write_bytes(content)
  (folder / "eval_final.json").unlink()
  with caplog.at_level("WARNING"):
    assert_same_run(whole, train(config))
  assert f"skipping the checkpoint of step 4: {largest} is damaged" in caplog.text


def test_torn_metrics_are_repaired_from_a_checkpoint(copied, whole):
  folder, config = copied
  lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
  # The third line is torn, so the checkpoint of step 4 has no complete record before it.
  (folder / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:50] + b"\0\0\n" + lines[3])
  assert_same_run(whole, train(config))


def test_a_lost_evaluation_of_the_start_is_made_of_the_start(copied, whole):
  folder, config = copied
  (folder / "eval_base.json").unlink()
  assert_same_run(whole, train(config))


@pytest.mark.parametrize("damage", ["missing", "torn early", "short"])
def test_checkpoints_that_metrics_do_not_reach_stop_the_run_and_stay(copied, damage):
  folder, config = copied
  path = folder / "metrics.jsonl"
  if damage == "missing":
    path.unlink()
  elif damage == "torn early":
    path.write_bytes(b"\0" * 40 + path.read_bytes()[40:])
  else:  # the checkpoints are of steps 2 and 4
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
  before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
  with pytest.raises(ValueError, match=r"checkpoints of steps 2, 4 .*metrics.jsonl is whole up to"):
    train(config)
  with pytest.raises(ValueError, match="--resume=never"):
    train(dataclasses.replace(config, resume="never"))
  assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before


def test_checkpoints_that_are_all_damaged_stop_the_run_and_stay(copied):
  folder, config = copied
  for step in (2, 4):
    largest = max((folder / "checkpoints" / str(step)).rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"steps 2, 4 .*is damaged.*start over") as caught:
    train(config)
  assert "\n" not in str(caught.value)
  with Checkpoints(folder, read_only=True) as checkpoints:
    assert checkpoints.steps() == [2, 4]
