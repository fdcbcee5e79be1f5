"""Collectives are read out of a program's text with their sizes and how often they run."""

from __future__ import annotations

import pytest

from grpo_jax.planner.hlo import array_bytes, by_kind, collectives

TEXT = """HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %gather = (bf16[1,4]{1,0:T(8,128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) all-gather-start(%s), replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="jit(f)/while/body/dot"}
  %done = bf16[8,4]{1,0} all-gather-done(%gather)
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %done)
}

%cond (p.1: (s32[], bf16[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%all-reduce-scatter.1 (p.2: f32[16,4]) -> f32[2,4] {
  %whole = f32[16,4]{1,0} all-reduce(%p.2), replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, to_apply=%add
  ROOT %part = f32[2,4]{1,0} dynamic-slice(%whole, %a, %b), dynamic_slice_sizes={2,4}
}

ENTRY %main (p.3: f32[16,4]) -> f32[2,4] {
  %loop = (s32[], bf16[8,4]) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %open = (s32[], bf16[8,4]) while(%loop), condition=%cond, body=%body
  %mean = (f32[2]{0}, f32[3]{0}) all-reduce(%l, %m), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %moved = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%mean), source_target_pairs={{0,1}}
  ROOT %fused = f32[2,4]{1,0} fusion(%p.3), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


def test_every_collective_is_found_with_its_bytes_and_runs():
  found = by_kind(collectives(TEXT, devices=8, unknown_trips=3))
  gathered = 8 * 4 * 2  # bytes of the result; 7 of 8 parts come from others
  assert found == {
    "all-gather": (5 + 3, pytest.approx((5 + 3) * gathered * 7 / 8)),
    "all-reduce": (1, pytest.approx(2 * 20 * 1 / 2)),
    "collective-permute": (1, 16.0),
    "reduce-scatter": (1, pytest.approx(16 * 4 * 4 * 7 / 8)),
  }


def test_trips_follow_from_the_condition_and_the_step_of_the_counter():
  program = """
%body.1 (p: (f32[4], s32[])) -> (f32[4], s32[]) {
  %i = s32[]{:T(128)} get-tuple-element(%p), index=1
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two), metadata={op_name="n"}
  %r = f32[4]{0} all-reduce(%x), channel_id=7, to_apply=%add
  ROOT %t = (f32[4]{0}, s32[]{:T(128)}) tuple(%r, %next)
}
%cond.1 (p.1: (f32[4], s32[])) -> pred[] {
  %end = s32[]{:T(128)} constant(9), metadata={op_name="e"}
  %j = s32[]{:T(128)} get-tuple-element(%p.1), index=1
  ROOT %less = pred[]{:T(512)} compare(%j, %end), direction=LT, metadata={op_name="l"}
}
ENTRY %main (x.1: f32[4]) -> f32[4] {
  %loop = (f32[4]{0}, s32[]) while(%init), condition=%cond.1, body=%body.1
  ROOT %out = f32[4]{0} get-tuple-element(%loop), index=0
}
"""
  assert collectives(program, devices=4, unknown_trips=99)[0].runs == 5  # 0, 2, 4, 6, 8
  early = program.replace("ROOT %less", "%less").replace(
    '{op_name="l"}', '{op_name="l"}\n  ROOT %both = pred[] and(%less, %more)'
  )
  assert collectives(early, devices=4, unknown_trips=99)[0].runs == 99  # may end before


def test_a_collective_that_is_hidden_behind_several_operations_counts_once():
  program = """
%start (a: f32[1]) -> f32[4] {
  ROOT %g.1 = f32[4]{0} all-gather(%a), channel_id=3, dimensions={0}
}
%hiding (b: f32[1]) -> f32[4] {
  ROOT %g.2 = f32[4]{0} all-gather(%b), channel_id=3, dimensions={0}
}
ENTRY %main (x: f32[1]) -> f32[4] {
  %begun = f32[4] fusion(%x), kind=kCustom, calls=%start
  %loop = f32[4] while(%begun), body=%hiding, backend_config={"known_trip_count":{"n":"6"}}
}
"""
  found = collectives(program, devices=4)
  assert [(one.runs, one.sent_bytes) for one in found] == [(1, 12.0)]


def test_loops_of_unknown_length_can_be_left_out():
  assert by_kind(collectives(TEXT, devices=8, unknown_trips=0))["all-gather"][0] == 5


def test_an_instruction_says_where_it_comes_from():
  first = next(c for c in collectives(TEXT, devices=8) if c.kind == "all-gather")
  assert first.group == 8 and first.where == "jit(f)/while/body/dot"
  assert first.result == "(bf16[1,4], bf16[8,4])"


def test_sizes_of_types():
  assert array_bytes("(bf16[2,8]{1,0:T(8,128)(2,1)}, pred[3], s32[], f8e4m3fn[4], u4[6])") == [
    32,
    3,
    4,
    4,
    3,
  ]
