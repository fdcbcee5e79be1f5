"""The reward of ToolRL (Qian et al., arXiv:2504.13958, section 3.3), for comparison."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from grpo_jax.rewards.parsing.parsed import ParseResult
from grpo_jax.tasks.schema import ToolCall, ToolTask

CORRECTNESS_RANGE = (-3.0, 3.0)
FORMAT_RANGE = (0.0, 1.0)


def toolrl_parts(completion: str, parsed: ParseResult, task: ToolTask) -> tuple[float, float]:
  """Returns ToolRL's format reward in {0, 1} and correctness reward in [-3, 3].

  Where calls are wanted, with G the wanted and P the given calls,

    S = J(names(G), names(P)) + sum over g in G of
        max over unused p of its name [J(keys(g), keys(p)) + #{k: p[k] = g[k]}]
    R_correct = 6 S / S_max - 3,  S_max = 1 + |G| + sum over g of |keys(g)|

  with J the Jaccard index of multisets; 3 when the lists are equal, -3 when nothing parses. Where
  no call is wanted, R_correct is 0 whatever the answer does: a needless call costs nothing.

  Deviations from the published code: our completions have no `<think>` and `<response>` tags, so
  the format reward asks for calls that parse where calls are wanted, and for any text where they
  are not (there the published pattern only looks at the tags). Values are compared with Python's
  equality, as published: `true` equals 1.
  """
  if not task.calls:
    return float(bool(completion.strip())), 0.0
  if not parsed.calls:
    return 0.0, CORRECTNESS_RANGE[0]
  return 1.0, _correctness(task.calls, parsed.calls)


def scaled(parts: tuple[float, float]) -> float:
  """Maps the sum of both parts from [-3, 4] onto [0, 1]; group advantages do not notice."""
  low = FORMAT_RANGE[0] + CORRECTNESS_RANGE[0]
  high = FORMAT_RANGE[1] + CORRECTNESS_RANGE[1]
  return (sum(parts) - low) / (high - low)


def _correctness(wanted: Sequence[ToolCall], given: Sequence[ToolCall]) -> float:
  low, high = CORRECTNESS_RANGE
  if list(wanted) == list(given):
    return high
  names = [call.name for call in wanted], [call.name for call in given]
  reached, most = _jaccard(*names), 1.0
  unused = list(given)
  for call in wanted:
    most += 1.0 + len(call.arguments)
    candidates = [
      (_match(call.arguments, other.arguments), index)
      for index, other in enumerate(unused)
      if other.name == call.name
    ]
    # As published: greedy in the wanted order, the first of equals, and none that matches nothing.
    best, index = max(candidates, key=lambda entry: entry[0], default=(0.0, -1))
    if best > 0.0:
      reached += best
      del unused[index]
  return (high - low) * reached / most + low


def _match(wanted: Mapping[str, object], given: Mapping[str, object]) -> float:
  values = sum(1.0 for key, value in wanted.items() if key in given and given[key] == value)
  return _jaccard(wanted, given) + values


def _jaccard(left: Iterable[str], right: Iterable[str]) -> float:
  # Through lists: a Counter of a mapping would take its values for counts.
  one, other = Counter(list(left)), Counter(list(right))
  if one == other:
    return 1.0
  shared = (one & other).total()
  return shared / (one.total() + other.total() - shared)
