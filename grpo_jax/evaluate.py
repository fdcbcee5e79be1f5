"""Held-out evaluation: render, generate, score, summarize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from grpo_jax.models import DecoderConfig, Params
from grpo_jax.report.scores import summarize
from grpo_jax.rewards import Reward
from grpo_jax.sampling import generate
from grpo_jax.tasks import completion_text, render
from grpo_jax.tasks.schema import ToolTask

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase


def evaluate(
  config: DecoderConfig,
  params: Params,
  tokenizer: PreTrainedTokenizerBase,
  tasks: Sequence[ToolTask],
  *,
  reward: Reward,
  max_prompt_tokens: int,
  max_completion_tokens: int,
  stop_ids: Sequence[int],
  temperature: float = 0.0,
  samples: int = 1,
  seed: int = 0,
  batch_prompts: int = 128,
  date: str = "",
  plain_user_text: bool = False,
  between: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Generates and scores answers to every task; nothing is skipped.

  Args:
    config: of the decoder.
    params: its weights.
    tokenizer: with the chat template that training uses too.
    tasks: at least one.
    reward: what scores the completions.
    max_prompt_tokens: a longer prompt is an error, not a cut.
    max_completion_tokens: completions are cut here.
    stop_ids: tokens that end a completion.
    temperature: 0 takes the likeliest token; otherwise divides the logits.
    samples: completions per task; more than one needs a temperature above 0.
    seed: of the samples and of the bootstrap.
    batch_prompts: the most prompts generated at a time; changes nothing but time and memory.
    date: that templates show, see `render`.
    plain_user_text: see `render`.
    between: called before each of these batches, and at the end, with the number of tasks that are
      done; may raise.

  Returns:
    The summary (see `scores.summarize`, with `truncated`, the share of completions cut at the
    limit, and `completion_tokens`, their mean length), and one row a completion in the order of
    the tasks: `index`, `sample`, `id`, `wanted`, `tool`, `request`, `prompt`, `answer` (a right
    one), `completion`, `tokens`, `reward`, `error`, `shown`, `wrong_arguments`.

  Raises:
    ValueError: no task, a prompt over the limit, or numbers out of range.
  """
  if not tasks:
    raise ValueError("there is no task to evaluate")
  if samples < 1 or batch_prompts < 1 or temperature < 0:
    raise ValueError(
      f"samples {samples}, batch_prompts {batch_prompts} and temperature {temperature}; expected "
      "at least 1, 1 and 0"
    )
  if samples > 1 and temperature == 0:
    raise ValueError(f"{samples} samples at temperature 0 are all the same; use one, or sample")
  prompts = [render(tokenizer, task, date=date, plain_user_text=plain_user_text) for task in tasks]
  longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
  if len(prompts[longest]) > max_prompt_tokens:
    over = sum(len(prompt) > max_prompt_tokens for prompt in prompts)
    raise ValueError(
      f"{over} of {len(prompts)} prompts are longer than {max_prompt_tokens} tokens; the longest, "
      f"{tasks[longest].id or f'number {longest + 1}'}, has {len(prompts[longest])}"
    )

  completions = generate(
    config,
    params,
    prompts,
    group_size=samples,
    max_tokens=max_completion_tokens,
    temperature=temperature,
    seed=seed,
    stop_ids=stop_ids,
    batch_prompts=batch_prompts,
    between=between,
  )
  flat = [(i, sample, ids) for i, some in enumerate(completions) for sample, ids in enumerate(some)]
  texts = [completion_text(tokenizer, ids, stop_ids) for _, _, ids in flat]
  # One call for all of them, so that a reward with worker processes can spread the work.
  breakdowns = reward.score_batch(texts, [tasks[i] for i, _, _ in flat])
  groups = [breakdowns[i : i + samples] for i in range(0, len(flat), samples)]
  cut = sum(len(ids) >= max_completion_tokens and ids[-1] not in stop_ids for _, _, ids in flat)
  summary = summarize(tasks, groups, seed=seed)
  summary["completion_tokens"] = sum(len(ids) for _, _, ids in flat) / len(flat)
  summary["truncated"] = cut / len(flat)
  prompt_texts = [tokenizer.decode(prompt, skip_special_tokens=False) for prompt in prompts]
  rows = [
    {
      "index": i,
      "sample": sample,
      "id": tasks[i].id,
      "wanted": tasks[i].behavior,
      "tool": tasks[i].tool_name,
      "request": tasks[i].request,
      "prompt": prompt_texts[i],
      "answer": tasks[i].answer,
      "completion": text,
      "tokens": len(ids),
      "reward": found.total,
      "error": found.error,
      "shown": found.shown,
      "wrong_arguments": list(found.wrong_arguments),
    }
    for (i, sample, ids), text, found in zip(flat, texts, breakdowns, strict=True)
  ]
  return summary, rows
