"""The built-in rewards: plain functions from a completion and a task to a breakdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

from grpo_jax.rewards.behaviour import TextKind, asks_for_missing, read_text
from grpo_jax.rewards.breakdown import RewardBreakdown, RewardWeights, Shown
from grpo_jax.rewards.matching.tool_call import CallComparison, compare_calls
from grpo_jax.rewards.parsing.parsed import ParseResult
from grpo_jax.rewards.parsing.parser import ParseMode, parse
from grpo_jax.rewards.toolrl import scaled, toolrl_parts
from grpo_jax.tasks.schema import ToolTask

Tiers = Literal["tiered", "binary", "graded", "toolrl"]
TIERS: tuple[Tiers, ...] = get_args(Tiers)

DEFAULT_WEIGHTS = RewardWeights()


def tiered(
  completion: str,
  task: ToolTask,
  parse: ParseMode = "strict",
  weights: RewardWeights = DEFAULT_WEIGHTS,
) -> RewardBreakdown:
  """Full marks, a fixed part for the right tool or for withholding the call, or nothing."""
  return _tiered(completion, _parse(completion, parse), task, weights)


def graded(
  completion: str,
  task: ToolTask,
  parse: ParseMode = "strict",
  weights: RewardWeights = DEFAULT_WEIGHTS,
) -> RewardBreakdown:
  """Like `tiered`, but the right tool earns the share of its arguments that are right."""

  def partial(compared: CallComparison) -> float:
    return weights.graded_floor + (weights.exact - weights.graded_floor) * compared.share

  return _score(completion, _parse(completion, parse), task, weights, partial)


def binary(
  completion: str,
  task: ToolTask,
  parse: ParseMode = "strict",
  weights: RewardWeights = DEFAULT_WEIGHTS,
) -> RewardBreakdown:
  """Full marks or nothing."""
  found = tiered(completion, task, parse, weights)
  return found if found.error is None else dataclasses.replace(found, total=0.0)


def toolrl(
  completion: str,
  task: ToolTask,
  parse: ParseMode = "strict",
  weights: RewardWeights = DEFAULT_WEIGHTS,
) -> RewardBreakdown:
  """ToolRL's published formula, mapped from [-3, 4] onto [0, 1].

  `error`, `wrong_arguments` and `shown` say what `tiered` says, so that both can be compared.
  """
  parsed = _parse(completion, parse)
  found = _tiered(completion, parsed, task, weights)
  pair = toolrl_parts(completion, parsed, task)
  parts = {**found.parts, "toolrl/format": pair[0], "toolrl/correctness": pair[1]}
  return dataclasses.replace(found, total=scaled(pair), parts=parts)


BUILT_IN: Mapping[Tiers, Callable[..., RewardBreakdown]] = MappingProxyType(
  {"tiered": tiered, "binary": binary, "graded": graded, "toolrl": toolrl}
)


def score(
  completion: str,
  task: ToolTask,
  tiers: Tiers = "tiered",
  parse: ParseMode = "strict",
  weights: RewardWeights = DEFAULT_WEIGHTS,
) -> RewardBreakdown:
  """Scores one completion with a built-in reward; deterministic, and raises on no completion.

  Args:
    completion: the model's answer, without the end-of-turn token.
    task: what was wanted.
    tiers: which reward: `tiered`, `binary`, `graded` or `toolrl`.
    parse: which forms count as a call: `strict` or `auto`.
    weights: the numbers.

  Returns:
    The breakdown; `.total` lies in [0, 1].

  Raises:
    ValueError: unknown `tiers` or `parse`.
  """
  if tiers not in TIERS:
    raise ValueError(f"tiers {tiers!r}; expected one of {', '.join(TIERS)}")
  return BUILT_IN[tiers](completion, task, parse, weights)


# `parse` is also the name of an argument above, as the outside world knows it.
_parse = parse

_SHOWN: Mapping[TextKind, Shown] = MappingProxyType(
  {
    "asks": "clarify",
    "declines": "refuse",
    "hedging": "other",
    "degenerate": "other",
    "states": "other",
  }
)


def _tiered(
  completion: str, parsed: ParseResult, task: ToolTask, weights: RewardWeights
) -> RewardBreakdown:
  return _score(completion, parsed, task, weights, lambda compared: weights.partial_execute)


def _score(
  completion: str,
  parsed: ParseResult,
  task: ToolTask,
  weights: RewardWeights,
  partial: Callable[[CallComparison], float],
) -> RewardBreakdown:
  if task.behavior != "execute":
    return _score_text(completion, parsed, task, weights)
  if not parsed.calls:
    if _means_call(completion, parsed, task):
      return _called(0.0, "unparsable", shown="other", detail=parsed.error or "")
    kind = read_text(completion, weights.max_text_chars).kind
    return _called(0.0, "no_call", shown=_SHOWN[kind], detail=parsed.error or "")
  compared = compare_calls(parsed.calls, task, ordered=weights.ordered_calls)
  if compared.error is None:
    return _called(weights.exact, None, parsed=1.0, tools=1.0, arguments=1.0)
  return _called(
    partial(compared) if compared.tools_right else 0.0,
    compared.error,
    parsed=1.0,
    tools=float(compared.tools_right),
    arguments=compared.share,
    wrong_arguments=compared.wrong_arguments,
  )


def _called(
  total: float,
  error: str | None,
  *,
  parsed: float = 0.0,
  tools: float = 0.0,
  arguments: float = 0.0,
  wrong_arguments: tuple[str, ...] = (),
  shown: Shown = "execute",
  detail: str = "",
) -> RewardBreakdown:
  parts = {"execute/parsed": parsed, "execute/tools": tools, "execute/arguments": arguments}
  return RewardBreakdown(total, error, parts, wrong_arguments, shown, detail)


def _means_call(completion: str, parsed: ParseResult, task: ToolTask) -> bool:
  """Whether a call was made or meant, as any form of call, or as a tool's name and a bracket."""
  if parsed.attempted:
    return True
  return "(" in completion and any(f"{spec.name}(" in completion for spec in task.tools)


def _score_text(
  completion: str, parsed: ParseResult, task: ToolTask, weights: RewardWeights
) -> RewardBreakdown:
  """Scores a completion of a task that wants no call."""
  clarify = task.behavior == "clarify"
  if _means_call(completion, parsed, task):
    parts = _text_parts(clarify, no_call=0.0, done=0.0)
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
  parts = _text_parts(clarify, no_call=1.0, done=float(error is None))
  return RewardBreakdown(total, error, parts, (), _SHOWN[reading.kind])


def _text_parts(clarify: bool, *, no_call: float, done: float) -> dict[str, float]:
  if clarify:
    return {"clarify/no_call": no_call, "clarify/asks": done}
  return {"refuse/no_call": no_call, "refuse/declines": done}
