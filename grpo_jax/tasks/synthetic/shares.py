"""What the tasks of a generated split are made of: exact shares, and subjects in turn."""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

Kind = TypeVar("Kind", bound=str)
Subject = TypeVar("Subject")


def planned(
  rng: random.Random,
  size: int,
  shares: Mapping[Kind, float],
  subjects: Callable[[Kind], Sequence[Subject]],
) -> list[tuple[Kind, Subject]]:
  """Kind and subject of every row: exact shares, subjects in turn, then shuffled.

  Args:
    rng: shuffles.
    size: number of rows.
    shares: of each kind in percent, together 100; the numbers of rows are rounded.
    subjects: what rows of a kind are about, at least one.
  """
  bounds = [round(size * share / 100) for share in accumulate(shares.values(), initial=0)]
  plan = []
  for kind, start, stop in zip(shares, bounds[:-1], bounds[1:], strict=True):
    able = subjects(kind)
    plan += [(kind, able[i % len(able)]) for i in range(start, stop)]
  rng.shuffle(plan)
  return plan
