"""A step that is timed is a real one, and a peer that takes turns is a real process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from grpo_jax.benchmarking.peers import PEERS, PeerProcess, prepare_environment, write_work
from grpo_jax.benchmarking.shapes import Workload
from grpo_jax.benchmarking.timing import TimedStep, process_age, spread
from grpo_jax.benchmarking.work import RandomWork
from grpo_jax.models import DecoderConfig, load_pretrained

RUNNERS = Path(__file__).parents[2] / "experiments" / "peers"
SHAPE = DecoderConfig(40, 16, 24, 1, 2, 1, 8, tie_embeddings=True, eos_token_ids=(1,))
LOAD = Workload(prompts=2, prompt_tokens=5, group_size=3, completion_tokens=4)


@pytest.fixture(scope="module")
def step():
  return TimedStep(RandomWork(SHAPE, LOAD))


def test_a_timed_step_samples_full_lengths_and_moves_the_policy(step):
  before, first = jax.device_get(step.state.params), step.prompts()
  timed = step.run()
  assert 0 < timed.sample + timed.update <= timed.total
  assert timed.cpu > 0
  assert 0 <= timed.foreign <= 1.01
  assert (timed.tokens, timed.equal_groups) == (LOAD.tokens, 0.0)
  assert step.compile_seconds > 0 and int(step.state.step) == step.step == 1
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, step.state.params)
  assert moved["embed"]["embedding"] and moved["layers"]["down"]["kernel"]
  assert np.any(step.prompts().tokens != first.tokens)  # each step has prompts of its own


def test_a_repeated_prompt_is_the_same_work_in_rows():
  work = RandomWork(SHAPE, LOAD)
  repeated = TimedStep(work, repeated=True)
  rows = repeated.prompts().tokens
  np.testing.assert_array_equal(rows, np.repeat(work.prompts(0), LOAD.group_size, axis=0))
  before = jax.device_get(repeated.state.params)
  timed = repeated.run()
  assert timed.tokens == LOAD.tokens and timed.update > 0
  # Groups of one have no advantage: all the work is done, for nothing.
  jax.tree.map(np.testing.assert_array_equal, before, repeated.state.params)


class NoisyWork(RandomWork):
  """Work whose rewards are equal but for float noise, in the first of two groups."""

  def rewards(self, step, rollout):
    rewards = np.zeros(rollout.tokens.shape[:2], np.float32)
    rewards[:, 0] = [1e-8, 1.0]
    return rewards


def test_groups_count_as_equal_where_they_teach_nothing():
  assert TimedStep(NoisyWork(SHAPE, LOAD)).run().equal_groups == 0.5


def test_figures_are_medians_and_extremes():
  assert spread([3.0, 1.0, 9.0]) == {"median": 3.0, "min": 1.0, "max": 9.0}
  assert process_age() > 0.1


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  return write_work(RandomWork(SHAPE, LOAD), 2, tmp_path_factory.mktemp("peer"))


def test_a_peer_gets_the_model_and_the_prompts_that_we_use(work, step):
  given = json.loads(work.read_text())
  config, params = load_pretrained(given["model"])
  assert config == SHAPE
  jax.tree.map(np.testing.assert_array_equal, params, RandomWork(SHAPE, LOAD).params())
  tokenizer = PreTrainedTokenizerFast.from_pretrained(given["model"])
  tokens = [[tokenizer(text)["input_ids"] for text in texts] for texts in given["steps"]]
  step.step = 0
  np.testing.assert_array_equal(tokens[0], step.prompts().tokens)
  step.step = 1
  np.testing.assert_array_equal(tokens[1], step.prompts().tokens)


PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from turns import Turns
turns = Turns()
print("a line of somebody else")
turns.ready()
for texts in turns.work["steps"]:
  turns.wait()
  turns.done(0.25, 0.5, len(texts))
sys.exit("out of steps")
"""


def test_a_peer_steps_when_asked_and_its_end_is_explained(work, tmp_path):
  script = tmp_path / "program.py"
  script.write_text(PROGRAM.format(folder=str(RUNNERS)))
  with PeerProcess([sys.executable, str(script)], work) as program:
    assert program.ready_seconds >= 0
    for _ in range(2):
      found = program.step()
      assert (found["sample"], found["update"], found["tokens"]) == (0.25, 0.5, LOAD.prompts)
      assert found["total"] >= 0 and found["peak_memory_gib"] > 0
    with pytest.raises(RuntimeError, match=r"exit status 1:[\s\S]*out of steps"):
      program.step()
  assert "somebody else" in (work.parent / "log.txt").read_text()


def test_environments_are_made_once(tmp_path):
  requirements = tmp_path / "none.txt"
  requirements.write_text("# nothing\n")
  python = prepare_environment("nobody", requirements, tmp_path / "env")
  made = python.lstat().st_mtime_ns
  assert prepare_environment("nobody", requirements, tmp_path / "env") == python
  assert python.lstat().st_mtime_ns == made


def test_every_peer_has_a_runner_and_exact_requirements():
  for peer, environment in PEERS.items():
    assert (RUNNERS / f"{peer}_grpo.py").exists()
    lines = (RUNNERS / f"{environment}.txt").read_text().splitlines()
    assert lines and all("==" in line for line in lines if not line.startswith("#"))
