"""The built-in rewards: DESIGN's tiers as plain functions from a completion to a breakdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from grpo_jax.rewards.behaviour import asks_for_missing, read_text
from grpo_jax.rewards.breakdown import RewardBreakdown, RewardWeights, Shown
from grpo_jax.rewards.parsed import ParseResult
from grpo_jax.rewards.parser import ParseMode, parse
from grpo_jax.rewards.tool_call import CallComparison, compare_calls
from grpo_jax.schema import ToolTask

Tiers = Literal["tiered", "binary", "graded"]
TIERS: tuple[Tiers, ...] = get_args(Tiers)

DEFAULT_WEIGHTS = RewardWeights()


def score(
  completion: str,
  task: ToolTask,
  tiers: Tiers = "tiered",
  parse: ParseMode = "strict",
  weights: RewardWeights = DEFAULT_WEIGHTS,
) -> RewardBreakdown:
  """Scores one completion; deterministic, and raises on no completion.

  Args:
    completion: the model's answer, without the end-of-turn token.
    task: what was wanted.
    tiers: which reward: `tiered`, `binary` or `graded`.
    parse: which forms count as a call: `strict` or `auto`.
    weights: the numbers.

  Returns:
    The breakdown; `.total` lies in [0, 1].

  Raises:
    ValueError: unknown `tiers` or `parse`.
  """
  if tiers not in TIERS:
    raise ValueError(f"tiers {tiers!r}; expected one of {', '.join(TIERS)}")
  rewards: dict[str, Callable[..., RewardBreakdown]] = {
    "tiered": tiered,
    "binary": binary,
    "graded": graded,
  }
  return rewards[tiers](completion, task, parse, weights)


def tiered(
  completion: str,
  task: ToolTask,
  parse: ParseMode = "strict",
  weights: RewardWeights = DEFAULT_WEIGHTS,
) -> RewardBreakdown:
  """Full marks, a fixed part for the right tool or the right kind of answer, or nothing."""
  return _score(completion, task, parse, weights, lambda compared: weights.partial_execute)


def graded(
  completion: str,
  task: ToolTask,
  parse: ParseMode = "strict",
  weights: RewardWeights = DEFAULT_WEIGHTS,
) -> RewardBreakdown:
  """Like `tiered`, but the right tool earns the share of its arguments that are right."""
  span = weights.exact - weights.graded_floor
  return _score(
    completion, task, parse, weights, lambda compared: weights.graded_floor + span * compared.share
  )


def binary(
  completion: str,
  task: ToolTask,
  parse: ParseMode = "strict",
  weights: RewardWeights = DEFAULT_WEIGHTS,
) -> RewardBreakdown:
  """Full marks or nothing."""
  found = tiered(completion, task, parse, weights)
  if found.error is None:
    return found
  return RewardBreakdown(
    0.0, found.error, found.parts, found.wrong_arguments, found.shown, found.detail
  )


def _score(
  completion: str,
  task: ToolTask,
  mode: ParseMode,
  weights: RewardWeights,
  partial: Callable[[CallComparison], float],
) -> RewardBreakdown:
  parsed = parse(completion, mode)
  if task.behavior != "execute":
    return _score_text(completion, parsed, task, weights)
  if parsed.error is not None:
    shown = shown_behaviour(completion, parsed, task, weights)
    error = "unparsable" if parsed.attempted else "no_call"
    return RewardBreakdown(0.0, error, _CALL_NOTHING, (), shown, parsed.error)
  compared = compare_calls(parsed.calls, task, ordered=weights.ordered_calls)
  if compared.error is None:
    return RewardBreakdown(weights.exact, None, _CALL_ALL, (), "execute")
  parts = {
    "call/parsed": 1.0,
    "call/tools": float(compared.tools_right),
    "call/arguments": compared.share,
  }
  total = partial(compared) if compared.tools_right else 0.0
  return RewardBreakdown(total, compared.error, parts, compared.wrong_arguments, "execute")


_CALL_NOTHING = {"call/parsed": 0.0, "call/tools": 0.0, "call/arguments": 0.0}
_CALL_ALL = {"call/parsed": 1.0, "call/tools": 1.0, "call/arguments": 1.0}


def shown_behaviour(
  completion: str, parsed: ParseResult, task: ToolTask, weights: RewardWeights = DEFAULT_WEIGHTS
) -> Shown:
  """The behaviour that a completion showed, whatever was wanted."""
  if parsed.calls:
    return "execute"
  if parsed.attempted or _quotes_call(completion, task):
    return "other"
  return _SHOWN[read_text(completion, weights.max_text_chars).kind]


_SHOWN: dict[str, Shown] = {
  "asks": "clarify",
  "declines": "refuse",
  "hedging": "other",
  "degenerate": "other",
  "states": "other",
}


def _quotes_call(text: str, task: ToolTask) -> bool:
  return "(" in text and any(f"{spec.name}(" in text for spec in task.tools)


def _score_text(
  completion: str, parsed: ParseResult, task: ToolTask, weights: RewardWeights
) -> RewardBreakdown:
  """Scores a completion of a task that wants no call."""
  wants_question = task.behavior == "clarify"
  part = "clarify" if wants_question else "refuse"
  goal = f"{part}/asks" if wants_question else f"{part}/declines"
  if parsed.calls:
    parts = {f"{part}/no_call": 0.0, goal: 0.0}
    return RewardBreakdown(0.0, "needless_call", parts, (), "execute")
  if parsed.error != "empty" and (parsed.attempted or _quotes_call(completion, task)):
    parts = {f"{part}/no_call": 0.0, goal: 0.0}
    detail = parsed.error if parsed.attempted else "other_form"
    return RewardBreakdown(0.0, "unparsable", parts, (), "other", detail or "")
  reading = read_text(completion, weights.max_text_chars)
  shown = _SHOWN[reading.kind]
  error: str | None
  if reading.kind in ("degenerate", "hedging"):
    error = reading.kind
  elif wants_question:
    asked = asks_for_missing(reading, task) if reading.kind == "asks" else "no_question"
    error = None if asked == "asks" else asked
  else:
    error = None if reading.kind == "declines" else "not_declined"
  parts = {f"{part}/no_call": 1.0, goal: float(error is None)}
  if error is None:
    return RewardBreakdown(
      weights.asks if wants_question else weights.declines, None, parts, (), shown
    )
  if error == "degenerate":
    return RewardBreakdown(0.0, error, parts, (), shown)
  partial = weights.partial_clarify if wants_question else weights.partial_refuse
  return RewardBreakdown(partial, error, parts, (), shown)
