"""Parses compiled HLO text for collectives: kind, executions and bytes sent.

A loop's body stands in the text once, so what is inside is multiplied by the loop's trip count,
which XLA for CPU writes beside the loop; otherwise it follows from the loop's condition (`i < 10`)
and from what the body adds to i, which is taken to start at zero.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({_KINDS})(-start)?\(")
_CALLEES = re.compile(r"(?:calls|to_apply|body|condition|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"([a-z]+\d+(?:e\dm\d\w*)?|pred)\[([\d,]*)\]")


class Collective(NamedTuple):
  """One collective instruction.

  Attributes:
    kind: `all-gather`, `all-reduce`, `reduce-scatter`, `all-to-all` or `collective-permute`.
    runs: how often a run executes it.
    sent_bytes: what a device sends in all these executions, by the ring algorithms: n devices that
      share R bytes of result send R (n - 1) / n for a gather or an all-to-all, twice that for an
      all-reduce, R (n - 1) for a reduce-scatter, R for a permutation.
    result: the shape, as XLA prints it.
    group: n.
    where: the operation it belongs to, from the metadata.
  """

  kind: str
  runs: int
  sent_bytes: float
  result: str
  group: int
  where: str


class _Computation(NamedTuple):
  """A computation's lines, and its collectives with their channel, which may be empty."""

  lines: list[str]
  collectives: list[tuple[str, Collective]]


def collectives(text: str, *, devices: int, unknown_trips: int = 1) -> list[Collective]:
  """Lists a program's collectives with how often they run.

  Args:
    text: `compiled.as_text()`.
    devices: in the mesh; the group where an instruction names none.
    unknown_trips: iterations of loops whose number is not known (a decoding loop that may end
      early: the most it can make).

  Returns:
    One entry an instruction, in no order that matters.
  """
  computations, entry = _computations(text, devices)
  found: list[Collective] = []
  by_channel: dict[tuple[str, ...], Collective] = {}

  def visit(name: str, times: int) -> None:
    if name not in computations or not times:
      return
    for channel, one in computations[name].collectives:
      one = one._replace(runs=times, sent_bytes=times * one.sent_bytes)
      # A TPU program names a collective again in every operation that hides it, and those may
      # stand in loops that it does not: it runs as often as where it is named least often.
      key = (channel, one.kind, one.result, one.where)  # of `shard_map`, all have channel 1
      if not channel:
        found.append(one)
      elif key not in by_channel or times < by_channel[key].runs:
        by_channel[key] = one
    for line in computations[name].lines:
      for callee, trips in _calls(line, computations, unknown_trips):
        visit(callee, times * trips)

  visit(entry, 1)
  return [*found, *by_channel.values()]


def by_kind(found: list[Collective]) -> dict[str, tuple[int, float]]:
  """Executions and sent bytes of each kind."""
  totals: dict[str, tuple[int, float]] = {}
  for one in found:
    count, sent = totals.get(one.kind, (0, 0.0))
    totals[one.kind] = (count + one.runs, sent + one.sent_bytes)
  return totals


def array_bytes(text: str) -> list[int]:
  """The bytes of every array in an HLO type, `bf16[2,8]` or a tuple of such."""
  sizes = []
  for kind, sides in _ARRAY.findall(text):
    bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
    count = math.prod(int(side) for side in sides.split(",") if side)
    sizes.append(max(1, count * bits // 8) if count else 0)
  return sizes


def _computations(text: str, devices: int) -> tuple[dict[str, _Computation], str]:
  computations: dict[str, _Computation] = {}
  entry, name, current = "", "", _Computation([], [])
  for line in text.splitlines():
    if start := _COMPUTATION.match(line):
      name = start[2]
      entry = name if start[1] else entry
      current = computations[name] = _Computation([], [])
      continue
    current.lines.append(line)
    if one := _COLLECTIVE.match(line):
      channel = re.search(r"channel_id=(\d+)", line)
      # A fusion of this name is how a TPU program scatters what it reduces.
      found = _collective(line, one, devices, "all-reduce-scatter" in name)
      current.collectives.append((channel[1] if channel else "", found))
  return computations, entry


def _calls(
  line: str, computations: dict[str, _Computation], unknown_trips: int
) -> Iterator[tuple[str, int]]:
  """The computations that a line calls, and how often."""
  trips = 1
  if " while(" in line:
    known = _TRIPS.search(line)
    trips = int(known[1]) if known else _trips(line, computations) or unknown_trips
  for name in _CALLEES.findall(line):
    yield name, trips
  for names in _BRANCHES.findall(line):
    for name in names.split(","):
      yield name.strip().lstrip("%"), 1  # an upper bound: every branch


def _trips(line: str, computations: dict[str, _Computation]) -> int | None:
  """Trips of a loop whose condition only compares a counter with a constant; None for others."""
  names = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", line))
  condition, body = ("\n".join(computations[names[part]].lines) for part in ("condition", "body"))
  test = re.search(r"ROOT \S+ = \S+ compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT", condition)
  if not test:
    return None
  place = re.search(rf"%{re.escape(test[1])} = .* get-tuple-element\(.*index=(\d+)", condition)
  end = _constant(test[2], condition)
  root = re.search(r"ROOT \S+ = .* tuple\((.*?)\)(?:,|$)", body, re.MULTILINE)
  if not place or end is None or not root:
    return None
  counter = re.findall(r"%([\w.\-]+)", root[1])[int(place[1])]
  added = re.search(rf"%{re.escape(counter)} = .* add\(%([\w.\-]+), %([\w.\-]+)\)", body)
  steps = [step for name in (added.groups() if added else ()) if (step := _constant(name, body))]
  return -(-end // steps[0]) if steps else None


def _constant(name: str, lines: str) -> int | None:
  found = re.search(rf"%{re.escape(name)} = \S+ constant\((\d+)\)", lines)
  return int(found[1]) if found else None


def _collective(line: str, match: re.Match[str], devices: int, scatters: bool) -> Collective:
  result, kind, started = match[1], match[2], bool(match[3])
  sizes = array_bytes(result)
  group = _group_size(line, devices)
  if started and kind in ("all-gather", "collective-permute"):
    # Of (operands, results, ..) only the results count; a permutation adds two small counters.
    sizes = sizes[1:2] if kind == "collective-permute" else sizes[len(sizes) // 2 :]
  share = (group - 1) / group
  sent = {
    "all-gather": share,
    "all-to-all": share,
    "all-reduce": 2 * share,
    "reduce-scatter": group - 1,
    "collective-permute": 1,
  }[kind]
  if kind == "all-reduce" and scatters:
    kind, sent = "reduce-scatter", share
  where = re.search(r'op_name="([^"]*)"', line)
  shape = re.sub(r"\{[^}]*\}", "", result)
  return Collective(kind, 1, float(sum(sizes)) * sent, shape, group, where[1] if where else "")


def _group_size(line: str, devices: int) -> int:
  """Devices that take part together, in any of the three ways in which HLO writes groups."""
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    return len(found[1].split(","))
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
    return int(found[1])
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  return devices
