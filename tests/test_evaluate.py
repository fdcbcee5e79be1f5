"""Evaluation end to end with a small random policy: nothing skipped, swapped or cut in silence."""

from __future__ import annotations

import hashlib

import jax
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grpo_jax.evaluate import evaluate
from grpo_jax.models import DecoderConfig, init_params
from grpo_jax.rewards import BuiltInReward, RewardBreakdown
from grpo_jax.rewards.batch import Reward
from grpo_jax.sampling import generate
from grpo_jax.tasks import render
from grpo_jax.tasks.schema import ToolSpec, ToolTask
from grpo_jax.tasks.synthetic.prompts import task_row

TOOL = ToolSpec("t", "", {"type": "object", "properties": {"a": {"type": "string"}}})
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}>"
LIMITS = {"max_prompt_tokens": 300, "max_completion_tokens": 6}
CONFIG = DecoderConfig(
  vocab_size=256, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_kv_heads=1,
  head_dim=8, tie_embeddings=True,
)  # fmt: skip
# A quarter of the bytes ends a completion, so that a random policy's differ in length.
STOP_IDS = tuple(range(0, 256, 4))


class Digest(Reward):
  """A reward that no two (task, completion) pairs share."""

  name = "digest"

  def score_batch(self, completions, tasks):
    return [self.score(c, task) for c, task in zip(completions, tasks, strict=True)]

  @staticmethod
  def score(completion: str, task: ToolTask) -> RewardBreakdown:
    digest = hashlib.sha256(f"{task.id}|{completion}".encode()).digest()
    return RewardBreakdown(int.from_bytes(digest[:4]) / 2**32, shown="refuse")


@pytest.fixture(scope="module")
def policy():
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  bytes_only = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
  bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  bytes_only.decoder = decoders.ByteLevel()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, chat_template=TEMPLATE)
  params = init_params(CONFIG, jax.random.key(0))
  return CONFIG, jax.tree.map(lambda leaf: 20 * leaf, params), tokenizer


@pytest.fixture(scope="module")
def tasks():
  # Lengths rise and fall, so that an order by length is not the order of the tasks.
  return [
    ToolTask.from_row(
      task_row(
        tools=[TOOL],
        request="please " * (1 + i * 5 % 7),
        ground_truth="Sorry, I cannot do that.",
        style="system",
        extra_info={"behavior": "refuse", "id": f"task-{i}", "tool": "t"},
      )
    )
    for i in range(7)
  ]


def run(policy, tasks, **options):
  options = {"reward": Digest(), "stop_ids": STOP_IDS, "batch_prompts": 4, **LIMITS} | options
  return evaluate(*policy, tasks, **options)


def test_every_row_is_the_completion_and_the_reward_of_its_own_task(policy, tasks):
  config, params, tokenizer = policy
  summary, rows = run(policy, tasks)
  assert [(row["index"], row["sample"], row["id"]) for row in rows] == [
    (i, 0, f"task-{i}") for i in range(7)
  ]
  for row, task in zip(rows, tasks, strict=True):
    alone = generate(
      config,
      params,
      [render(tokenizer, task)],
      max_tokens=6,
      temperature=0.0,
      stop_ids=STOP_IDS,
      batch_prompts=4,
    )[0][0]
    text = alone[:-1] if alone[-1] in STOP_IDS else alone
    assert row["completion"] == tokenizer.decode(text)
    assert row["tokens"] == len(alone)
    assert row["reward"] == Digest.score(row["completion"], task).total
    assert row["request"] == task.request and row["request"] in row["prompt"]
    assert (row["wanted"], row["tool"], row["shown"]) == ("refuse", "t", "refuse")
  lengths = [row["tokens"] for row in rows]
  assert summary["completion_tokens"] == pytest.approx(sum(lengths) / 7)
  assert summary["reward_mean"] == pytest.approx(sum(row["reward"] for row in rows) / 7)
  assert len({row["completion"] for row in rows}) > 1


def test_samples_stand_together_and_do_not_depend_on_the_batch(policy, tasks):
  options = {"samples": 3, "temperature": 1.0, "seed": 5}
  summary, rows = run(policy, tasks, **options)
  assert summary["samples"] == 3 and summary["n"] == 7
  assert [(row["index"], row["sample"]) for row in rows] == [
    (i, s) for i in range(7) for s in range(3)
  ]
  assert any(len({row["completion"] for row in rows[i : i + 3]}) > 1 for i in range(0, 21, 3))
  assert run(policy, tasks, **options, batch_prompts=2)[1] == rows
  assert run(policy, tasks, **options | {"seed": 6})[1] != rows


def test_share_cut_at_the_limit_counts_what_did_not_end(policy, tasks):
  # One token that ends the completion at the limit is not a cut.
  ended = run(policy, tasks, stop_ids=tuple(range(256)), max_completion_tokens=1)[0]
  assert ended["completion_tokens"] == 1 and ended["truncated"] == 0.0
  summary, rows = run(policy, tasks, stop_ids=())
  assert summary["truncated"] == 1.0
  assert {row["tokens"] for row in rows} == {6}


def test_built_in_rewards_give_their_reasons(policy, tasks):
  summary, rows = run(policy, tasks, reward=BuiltInReward())
  assert sum(summary["error_rates"].values()) == pytest.approx(1.0)
  assert {row["error"] for row in rows} == set(summary["error_rates"])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      {"max_prompt_tokens": 230},
      "4 of 7 prompts are longer than 230 tokens; the longest, task-4, has 252",
    ),
    ({"samples": 2}, "2 samples at temperature 0 are all the same"),
    ({"temperature": -1.0}, "temperature -1.0"),
    ({"batch_prompts": 0}, "batch_prompts 0"),
  ],
)
def test_settings_that_cannot_work_are_refused(policy, tasks, options, message):
  with pytest.raises(ValueError, match=message):
    run(policy, tasks, **options)


def test_no_task_is_refused(policy):
  with pytest.raises(ValueError, match="no task"):
    run(policy, [])
