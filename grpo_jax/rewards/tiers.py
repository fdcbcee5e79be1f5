"""The built-in rewards: one function from a completion and a task to a breakdown."""

import dataclasses
from typing import Literal, get_args

from grpo_jax.rewards.behavior import TextKind, asks_for_missing, read_text
from grpo_jax.rewards.breakdown import RewardBreakdown, RewardWeights, Shown
from grpo_jax.rewards.matching.tool_call import compare_calls
from grpo_jax.rewards.parsing import parser
from grpo_jax.rewards.parsing.parsed import ParseResult
from grpo_jax.rewards.parsing.parser import ParseMode
from grpo_jax.rewards.toolrl import scaled, toolrl_parts
from grpo_jax.tasks.schema import ToolTask

Tiers = Literal["tiered", "binary", "graded", "toolrl"]
TIERS: tuple[Tiers, ...] = get_args(Tiers)

DEFAULT_WEIGHTS = RewardWeights()


def score(
  completion: str,
  task: ToolTask,
  reward: Tiers = "tiered",
  parse: ParseMode = "strict",
  weights: RewardWeights = DEFAULT_WEIGHTS,
) -> RewardBreakdown:
  """Scores one completion with a built-in reward; deterministic, and raises on no completion.

  Args:
    completion: the model's answer, without the end-of-turn token.
    task: what was wanted.
    reward: `tiered` (full marks, a fixed part for the right tool or for withholding the call, or
      nothing), `graded` (the same, but the right tool earns the share of its arguments that are
      right), `binary` (full marks or nothing) or `toolrl` (ToolRL's published formula, mapped from
      [-3, 4] onto [0, 1]; the rest of the breakdown is that of `tiered`, for comparison).
    parse: which forms count as a call: `strict` or `auto`.
    weights: the numbers.

  Returns:
    The breakdown; `.total` lies in [0, 1].

  Raises:
    ValueError: unknown `reward` or `parse`.
  """
  if reward not in TIERS:
    raise ValueError(f"reward {reward!r}; expected one of {', '.join(TIERS)}")
  parsed = parser.parse(completion, parse)
  if task.behavior == "execute":
    found = _score_calls(completion, parsed, task, weights, graded=reward == "graded")
  else:
    found = _score_text(completion, parsed, task, weights)
  if reward == "binary" and found.error not in (None, "loose_form"):
    return dataclasses.replace(found, total=0.0)
  if reward == "toolrl":
    pair = toolrl_parts(completion, parsed, task)
    parts = {**found.parts, "toolrl/format": pair[0], "toolrl/correctness": pair[1]}
    return dataclasses.replace(found, total=scaled(pair), parts=parts)
  return found


def _score_calls(
  completion: str, parsed: ParseResult, task: ToolTask, weights: RewardWeights, *, graded: bool
) -> RewardBreakdown:
  """Scores a completion of a task that wants calls."""
  parts = dict.fromkeys(("execute/parsed", "execute/tools", "execute/arguments"), 0.0)
  if not parsed.calls:
    if _means_call(completion, parsed, task):
      return RewardBreakdown(0.0, "unparsable", parts, (), "other", parsed.error or "")
    shown = _shown(read_text(completion, weights.max_text_chars).kind)
    return RewardBreakdown(0.0, "no_call", parts, (), shown, parsed.error or "")
  compared = compare_calls(parsed.calls, task, ordered=weights.ordered_calls)
  parts["execute/parsed"] = 1.0
  parts["execute/tools"] = float(compared.tools_right)
  parts["execute/arguments"] = compared.share
  error = compared.error
  if error is None:
    total = weights.exact
  elif not compared.tools_right:
    total = 0.0
  elif graded:
    total = weights.graded_floor + (weights.exact - weights.graded_floor) * compared.share
  else:
    total = weights.partial_execute
  if weights.format_bonus and not parsed.strict:
    total *= 1 - weights.format_bonus
    error = error or "loose_form"
  return RewardBreakdown(total, error, parts, compared.wrong_arguments, "execute")


def _means_call(completion: str, parsed: ParseResult, task: ToolTask) -> bool:
  """Whether a call was made or meant, as any form of call, or as a tool's name and a bracket."""
  if parsed.attempted:
    return True
  return "(" in completion and any(f"{spec.name}(" in completion for spec in task.tools)


def _shown(kind: TextKind) -> Shown:
  return "clarify" if kind == "asks" else "refuse" if kind == "declines" else "other"


def _score_text(
  completion: str, parsed: ParseResult, task: ToolTask, weights: RewardWeights
) -> RewardBreakdown:
  """Scores a completion of a task that wants no call."""
  clarify = task.behavior == "clarify"
  done = "clarify/asks" if clarify else "refuse/declines"
  parts = {f"{task.behavior}/no_call": 0.0, done: 0.0}
  if _means_call(completion, parsed, task):
    if parsed.calls:
      return RewardBreakdown(0.0, "needless_call", parts, (), "execute")
    return RewardBreakdown(0.0, "unparsable", parts, (), "other", parsed.error or "")
  reading = read_text(completion, weights.max_text_chars)
  error: str | None = None
  if reading.kind in ("degenerate", "hedging"):
    error = reading.kind
  elif clarify:
    asked = asks_for_missing(reading, task) if reading.kind == "asks" else "no_question"
    error = None if asked == "asks" else asked
  elif reading.kind != "declines":
    error = "not_declined"
  if error is None:
    total = weights.asks if clarify else weights.declines
  elif error == "degenerate":
    total = 0.0
  else:
    total = weights.partial_clarify if clarify else weights.partial_refuse
  parts = {f"{task.behavior}/no_call": 1.0, done: float(error is None)}
  return RewardBreakdown(total, error, parts, (), _shown(reading.kind))
