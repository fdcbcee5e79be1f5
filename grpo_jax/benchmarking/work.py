"""Workloads of the benchmark: random tokens of fixed lengths, or real tool-calling tasks."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np

from grpo_jax.benchmarking.shapes import Workload, in_dtype
from grpo_jax.models import DecoderConfig, Params, init_params, load_pretrained
from grpo_jax.runs.installation import TINY_MODEL
from grpo_jax.sampling import LENGTH_BUCKETS
from grpo_jax.tasks import completion_text, load_tokenizer, render, render_text, stop_token_ids
from grpo_jax.tasks.batches import batch_at
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.synthetic.splits import generate
from grpo_jax.types import Rollout

FIRST_TOKEN = 3  # those below are special in the shapes' vocabularies


class RandomWork:
  """Random weights and prompts; every completion runs to its full length: the work is fixed.

  Attributes:
    config: of the decoder.
    load: the batch; where lengths vary, the most tokens.
    stop_ids: tokens that end a completion; none makes every completion run to its full length.
    temperature: of sampling, and of the loss.
    buckets: lengths that prompts are padded to.
  """

  stop_ids: Sequence[int] = ()
  temperature = 1.0

  def __init__(self, config: DecoderConfig, load: Workload, seed: int = 0) -> None:
    self.config, self.load, self.seed = config, load, seed
    self.buckets: Sequence[int] = (load.prompt_tokens,)

  def params(self) -> Params:
    """The weights to begin with, float32."""
    return jax.jit(functools.partial(init_params, self.config))(jax.random.key(self.seed))

  def prompts(self, step: int) -> Sequence[Sequence[int]]:
    """P prompts as token ids; other ones at each step."""
    rng = np.random.default_rng((self.seed, step))
    shape = (self.load.prompts, self.load.prompt_tokens)
    vocab = self.config.vocab_size
    return rng.integers(min(FIRST_TOKEN, vocab - 1), vocab, shape).tolist()

  def rewards(self, step: int, drawn: Rollout) -> np.ndarray:
    """Rewards [P, G] float32 of completions on the host."""
    # Any function of the tokens that differs within a group: no group is left out of the update.
    tokens = np.asarray(drawn.tokens)
    return ((tokens % 7 == 0).mean(-1) + 1e-6 * tokens[..., 0]).astype(np.float32)


class ToolWork:
  """The embedded policy on tasks of the generator, as `train_grpo.py --preset=tiny` trains it.

  Prompts differ in length, answers end at a stop token, and groups may have equal rewards.

  Args:
    load: P, G and T; S becomes the longest prompt of the steps.
    steps: how many steps' prompts will be asked for.
    dtype: compute dtype.
    seed: of the data's order.

  Attributes: see `RandomWork`.
  """

  temperature = 0.5  # the preset's
  buckets: Sequence[int] = LENGTH_BUCKETS
  model = TINY_MODEL

  def __init__(self, load: Workload, steps: int, dtype: str = "float32", seed: int = 0) -> None:
    config, self._params = load_pretrained(self.model)
    self.config = in_dtype(config, dtype)
    self._tokenizer = load_tokenizer(self.model)
    self.stop_ids: Sequence[int] = stop_token_ids(self._tokenizer, self.model)
    tasks = [ToolTask.from_row(row) for row in generate(0, "train")]
    order = functools.partial(
      batch_at, num_tasks=len(tasks), prompts_per_step=load.prompts, seed=seed
    )
    self.tasks = [[tasks[i] for i in order(step)] for step in range(steps)]
    self._ids = [[render(self._tokenizer, task) for task in step] for step in self.tasks]
    longest = max(len(ids) for step in self._ids for ids in step)
    self.load = dataclasses.replace(load, prompt_tokens=longest)

  def params(self) -> Params:
    return cast(Params, jax.tree.map(jax.numpy.copy, self._params))  # a step donates its state

  def prompts(self, step: int) -> Sequence[Sequence[int]]:
    return self._ids[step]

  def texts(self, step: int) -> list[str]:
    """The prompts as text, for programs with the same tokenizer."""
    return [render_text(self._tokenizer, task) for task in self.tasks[step]]

  def rewards(self, step: int, drawn: Rollout) -> np.ndarray:
    decode = lambda ids: completion_text(self._tokenizer, ids.tolist(), self.stop_ids)
    groups: Any = zip(self.tasks[step], drawn.tokens, drawn.completion_mask, strict=True)
    return np.asarray(
      [
        [text_reward(decode(ids[real]), task.answer) for ids, real in zip(rows, kept, strict=True)]
        for task, rows, kept in groups
      ],
      np.float32,
    )


Work = RandomWork | ToolWork


def text_reward(text: str, wanted: str) -> float:
  """A small stand-in for the `tiered` reward; experiments/peers/turns.py has the same function.

  Args:
    text: an answer.
    wanted: a right one.

  Returns:
    1 for the wanted calls, 0.5 for those of the right tool with other arguments; 1 for words where
    words are wanted, if they ask where they should and only there; else 0.
  """
  text = text.strip()
  if wanted.startswith("["):
    same_tool = text.split('"arguments"')[0] == wanted.split('"arguments"')[0]
    return 1.0 if text == wanted else 0.5 * same_tool
  asks = ("?" in text) == ("?" in wanted)
  return float(asks and bool(text) and not text.startswith("["))
