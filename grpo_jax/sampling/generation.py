"""Completions of any number of prompts, and the lengths that everything is padded to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from grpo_jax.config import SamplingConfig
from grpo_jax.models import DecoderConfig, Params
from grpo_jax.runs import hosts
from grpo_jax.sampling.decoding import halves
from grpo_jax.sampling.program import SampleProgram
from grpo_jax.tasks.batches import bucket_length, pad_prompts
from grpo_jax.types import Prompts, Rollout

# Lengths that prompts and completions are padded to: few enough programs, little enough padding.
LENGTH_BUCKETS = (
  *(
    32,
    64,
    96,
    128,
    192,
    256,
    320,
    384,
    448,
    512,
    640,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
    6144,
    8192,
  ),
  *(12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072),
)
BATCH_TOKENS = 16384  # of prompts and completions that `generate` makes room for at a time


def pad_to_bucket(
  prompts: Sequence[Sequence[int]], pad_id: int, buckets: Sequence[int] = LENGTH_BUCKETS
) -> Prompts:
  """A step's prompts as arrays on the host, padded to the bucket of the longest."""
  length = bucket_length(max(map(len, prompts)), buckets)
  tokens, mask = pad_prompts(prompts, length, pad_id)
  return Prompts(tokens, mask, np.arange(len(prompts), dtype=np.int32))


def cut_to_bucket(rollout: Rollout, longest: int) -> Rollout:
  """Cuts the padding behind the longest completion, of so many tokens, down to a bucket."""
  length = min(bucket_length(longest, LENGTH_BUCKETS), rollout.tokens.shape[2])
  names = ("tokens", "completion_mask", "loss_mask", "logp", "sampled_logp")
  return dataclasses.replace(rollout, **{n: getattr(rollout, n)[..., :length] for n in names})


def generate(
  config: DecoderConfig,
  params: Params,
  prompts: Sequence[Sequence[int]],
  *,
  group_size: int = 1,
  max_tokens: int = 64,
  temperature: float = 1.0,
  seed: int = 0,
  stop_ids: Sequence[int] = (),
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  batch_prompts: int = 128,
  between: Callable[[int], None] = lambda done: None,
) -> list[list[list[int]]]:
  """Completes any number of prompts of any lengths.

  Prompts run in batches of similar lengths, padded, the longest first: as many at a time as
  `BATCH_TOKENS` has room for, and at most `batch_prompts`. Neither changes what a prompt's
  candidates are.

  Args:
    config: the decoder.
    params: its parameters.
    prompts: token ids, each prompt with at least one.
    group_size: G, candidates a prompt.
    max_tokens: the most tokens of a completion.
    temperature: 0 is greedy.
    seed: of the candidates; prompt i, candidate g depends on (seed, i, g) alone.
    stop_ids: tokens that end a completion.
    top_k: see `SamplingConfig`; so for `top_p` and `min_p`.
    top_p: as above.
    min_p: as above.
    batch_prompts: the most prompts decoded at the same time.
    between: called before each batch, and at the end, with the number of prompts that are done;
      may raise.

  Returns:
    For each prompt G lists of token ids, the stop token included when there was one.

  Raises:
    ValueError: an empty prompt, or settings out of range.
  """
  if not all(len(p) for p in prompts):
    raise ValueError("every prompt needs at least one token")
  pad_id = config.pad_token_id or 0
  cfg = SamplingConfig(
    group_size=group_size,
    max_tokens=max_tokens,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    min_p=min_p,
    stop_ids=tuple(int(i) for i in stop_ids),
    pad_id=pad_id,
  )
  program, key = SampleProgram(config, None, cfg), jax.random.key(seed)
  weights = program.weights(params, None)  # once for all batches
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
  results: list[list[list[int]]] = [[] for _ in prompts]
  while order:
    between(len(prompts) - len(order))
    length = bucket_length(len(prompts[order[0]]), LENGTH_BUCKETS)
    room = max(1, BATCH_TOKENS // (length + group_size * max_tokens))
    sizes = halves(batch_prompts)  # few shapes
    rows = bucket_length(min(len(order), max(n for n in sizes if n <= room)), sizes)
    chosen, order = order[:rows], order[rows:]
    tokens, mask = pad_prompts([prompts[i] for i in chosen], length, pad_id)
    padded = _with_blanks(Prompts(tokens, mask, np.asarray(chosen, np.int32)), rows)
    rollout, _ = program.run(params, None, padded, key, weights)
    drawn, kept = hosts.fetch((rollout.tokens, rollout.completion_mask))
    for row, i in enumerate(chosen):
      results[i] = [t[m].tolist() for t, m in zip(drawn[row], kept[row], strict=True)]
  between(len(prompts))
  return results


def _with_blanks(prompts: Prompts, rows: int) -> Prompts:
  """Adds prompts without a real token, whose candidates have ended before they begin."""
  add = rows - len(prompts.index)
  return jax.tree.map(lambda x: np.pad(x, [(0, add), *[(0, 0)] * (x.ndim - 1)]), prompts)
