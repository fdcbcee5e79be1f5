"""Somebody else's reward function: whatever it does, the batch goes on."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo_jax.rewards import ERRORS, RewardConfig, load_reward
from grpo_jax.tasks.schema import ToolTask

TASK = ToolTask.from_row(
  {
    "prompt": "x",
    "reward_model": {"ground_truth": '[{"name": "f", "arguments": {"a": 1}}]'},
    "extra_info": {"id": "7"},
    "data_source": "here",
  }
)
QUICK = RewardConfig(time_limit=0.5, workers=1)

NASTY = """
import ctypes, os, sys, time
print("to nobody's output")
from grpo_jax.rewards import RewardBreakdown

def nasty(completion, task):
  if completion == "raise": raise KeyError("boo")
  if completion == "fetch": raise OSError("no answer from https://bob:" + "s3cret@host/score")
  if completion == "exit": sys.exit(3)
  if completion == "hang":
    while True: pass
  if completion == "nan": return float("nan")
  if completion == "huge": return -1e300
  if completion == "none": return None
  if completion == "text": return "0.5"
  if completion == "die": os._exit(7)
  if completion == "segfault": ctypes.string_at(0)
  if completion == "parts":
    return RewardBreakdown(0.3, "no_call", {"p": 0.1}, ("a",), "refuse", "d")
  if completion == "bad parts": return RewardBreakdown(0.3, parts={"p": float("inf")})
  if completion == "jax": return float("jax" in sys.modules)
  if completion == "pid": return os.getpid()
  return 0.5
"""


@pytest.fixture
def nasty(tmp_path: Path) -> str:
  path = tmp_path / "nasty.py"
  path.write_text(NASTY)
  return f"{path}:nasty"


FAILURES = {
  "raise": ("reward_error", "KeyError: 'boo'"),
  "exit": ("reward_error", "SystemExit: 3"),
  "hang": ("reward_timeout", "no result after 0.5 seconds"),
  "nan": ("reward_invalid", "returned nan"),
  "huge": ("reward_invalid", "returned -1e+300"),
  "none": ("reward_invalid", "returned None"),
  "text": ("reward_invalid", "returned '0.5'"),
  "bad parts": ("reward_invalid", "returned inf"),
  "die": ("reward_crash", "the process ended (exit code 7)"),
  "segfault": ("reward_crash", "the process ended (signal SIGSEGV)"),
}


def test_failures_score_on_error_are_counted_and_end_nothing(nasty):
  config = RewardConfig(time_limit=0.5, workers=1, on_error=-0.25)
  with load_reward(nasty, config) as reward:
    for completion, (error, detail) in FAILURES.items():
      before = reward.failures().get(error, 0)
      found = reward.score_batch(["ok", completion, "ok"], [TASK] * 3)
      assert [one.total for one in found] == [0.5, -0.25, 0.5]
      assert found[1].error == error and error in ERRORS
      assert found[1].detail.startswith(detail)
      assert reward.failures()[error] == before + 1
    assert sum(reward.failures().values()) == len(FAILURES)


def test_a_traceback_holds_no_password(nasty):
  with load_reward(nasty, QUICK) as reward:
    (found,) = reward.score_batch(["fetch"], [TASK])
    assert found.detail == "OSError: no answer from https://***@host/score"
    assert "s3cret@host" not in reward.first_traceback.replace('"s3cret@host/score")', "")


def test_the_first_traceback_is_kept(nasty):
  with load_reward(nasty, QUICK) as reward:
    reward.score_batch(["ok", "raise", "nan"], [TASK] * 3)
    assert "KeyError: 'boo'" in reward.first_traceback
    assert 'raise KeyError("boo")' in reward.first_traceback
    assert reward.failures() == {"reward_error": 1, "reward_invalid": 1}


def test_timeouts_of_several_workers_pass_at_the_same_time(nasty):
  with load_reward(nasty, RewardConfig(time_limit=1.0, workers=4)) as reward:
    start = time.monotonic()
    found = reward.score_batch(["hang"] * 4, [TASK] * 4)
    assert [one.error for one in found] == ["reward_timeout"] * 4
    assert time.monotonic() - start < 3.0


def test_breakdowns_come_back_whole_and_without_jax(nasty):
  with load_reward(nasty, QUICK) as reward:
    found, jax, *plain = reward.score_batch(
      ["parts", "jax", TASK.answer, "Which city?", "I can't."], [TASK] * 5
    )
  assert (found.total, found.error, found.parts) == (0.3, "no_call", {"p": 0.1})
  assert (found.wrong_arguments, found.shown, found.detail) == (("a",), "refuse", "d")
  assert jax.total == 0.0
  # A plain number says nothing about the shown behaviour: the rule does.
  assert [one.shown for one in plain] == ["execute", "clarify", "refuse"]


@pytest.mark.parametrize(("mode", "shown"), [("strict", "other"), ("auto", "execute")])
def test_what_a_number_s_completion_shows_is_read_in_the_run_s_own_mode(nasty, mode, shown):
  config = dataclasses.replace(QUICK, parse=mode)
  with load_reward(nasty, config) as reward:
    (found,) = reward.score_batch([f"Sure: {TASK.answer}"], [TASK])
  assert found.shown == shown


HALF = """
from grpo_jax.rewards import RewardBreakdown

def half(completion, task):
  if completion == "raise": raise ValueError("half \\ud800 of it")
  return RewardBreakdown(0.5, "\\udc80", {"\\ud800": 1.0}, ("\\ud801",), "other", "\\udfff")
"""


def test_half_a_surrogate_pair_arrives_as_text_that_a_file_can_hold(tmp_path):
  path = tmp_path / "half.py"
  path.write_text(HALF)
  with load_reward(f"{path}:half", QUICK) as reward:
    raised, told = reward.score_batch(["raise", "tell"], [TASK] * 2)
    assert raised.detail == "ValueError: half ? of it"
    assert "half ? of it" in reward.first_traceback
  assert (told.error, told.parts, told.detail) == ("?", {"?": 1.0}, "?")
  assert told.wrong_arguments == ("?",)
  path.write_text('raise OSError("\\ud800")')
  with pytest.raises(ValueError, match=r"OSError: \?"):
    load_reward(f"{path}:half", QUICK)


def test_closing_ends_the_processes(nasty):
  with load_reward(nasty, QUICK) as reward:
    pid = int(reward.score_batch(["pid"], [TASK])[0].total)
    os.kill(pid, 0)
  with pytest.raises(ProcessLookupError):
    os.kill(pid, 0)
  reward.close()


def test_workers_die_with_a_killed_parent(nasty):
  script = (
    "from tests_task import *\n"
    "reward = load_reward(sys.argv[1], RewardConfig(time_limit=0.2, workers=1))\n"
    "print(int(reward.score_batch(['pid'], [TASK])[0].total), flush=True)\n"
    "os.kill(os.getpid(), 9)\n"
  ).replace(
    "from tests_task import *",
    "import os, sys\n"
    "from grpo_jax.rewards import RewardConfig, load_reward\n"
    "from grpo_jax.tasks.schema import ToolTask\n"
    "TASK = ToolTask.from_row({'prompt': 'x', 'reward_model': {'ground_truth': 'Which?'}})",
  )
  done = subprocess.run(
    [sys.executable, "-c", script, nasty], capture_output=True, text=True, timeout=60
  )
  pid = int(done.stdout)
  for _ in range(100):
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return
    time.sleep(0.05)
  pytest.fail("the worker outlived its parent")


VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
  assert not kwargs
  right = (data_source, extra_info["id"]) == ("here", "7") and solution_str == ground_truth
  return {"score": float(right), "acc": 0.5, "note": "text is left out"}

def old_style(solution_str, ground_truth, scale=2.0):
  return scale * (solution_str == ground_truth)

async def waits(data_source, solution_str, ground_truth, extra_info):
  return 0.75
"""


@pytest.mark.parametrize(
  ("function", "right", "wrong", "parts"),
  [
    ("compute_score", 1.0, 0.0, {"acc": 0.5}),
    ("old_style", 2.0, 0.0, {}),
    ("waits", 0.75, 0.75, {}),
  ],
)
def test_verl_functions_are_taken_as_they_are(tmp_path, function, right, wrong, parts):
  path = tmp_path / "verl_reward.py"
  path.write_text(VERL)
  with load_reward(f"{path}:{function}", QUICK) as reward:
    found = reward.score_batch([TASK.answer, "no"], [TASK] * 2)
    assert reward.failures() == {}
  assert [one.total for one in found] == [right, wrong]
  assert found[0].parts == parts


def test_a_file_may_import_its_neighbours(tmp_path):
  (tmp_path / "neighbour.py").write_text("VALUE = 0.125")
  path = tmp_path / "mine.py"
  path.write_text("from neighbour import VALUE\ndef f(completion, task): return VALUE")
  with load_reward(f"{path}:f", QUICK) as reward:
    assert reward.score_batch(["x"], [TASK])[0].total == 0.125


def test_a_reward_that_cannot_be_loaded_says_why_before_any_work(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text("def f(completion, task): return 1\n")
  with pytest.raises(ValueError, match=r"has no function 'g'; it has f$"):
    load_reward(f"{path}:g", QUICK)
  with pytest.raises(ValueError, match=r"absent\.py: no such file"):
    load_reward(f"{tmp_path / 'absent.py'}:f", QUICK)
  path.write_text("1 / 0\n")
  with pytest.raises(ValueError, match="ZeroDivisionError"):
    load_reward(f"{path}:f", QUICK)
