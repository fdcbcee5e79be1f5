"""Candidates that have ended cost no more, and nothing else is to be seen of it."""

from __future__ import annotations

import dataclasses
import functools
import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grpo_jax.benchmarking.shapes import Workload
from grpo_jax.benchmarking.work import ToolWork
from grpo_jax.models import DecoderConfig, init_params, unstacked
from grpo_jax.sampling import (
  SampleProgram,
  SamplingConfig,
  generate,
  pad_to_bucket,
  sample_groups,
)
from grpo_jax.sampling.decoding import begin, compact, decode, halves, settle, shape_left
from grpo_jax.sharding import make_mesh
from grpo_jax.types import Prompts

V, T = 16, 6
ONE = make_mesh("data:1")
KEY = jax.random.key(3)
SCRIPT = Path(__file__).with_name("mesh_segments.py")
MESHES = ("data:8", "data:2,fsdp:2,tensor:2")


def rows_of(segments):
  return sum(one.prompts * one.group * one.steps for one in segments)


def assert_same(found, wanted, atol=1e-5):
  np.testing.assert_array_equal(found.tokens, wanted.tokens)
  np.testing.assert_array_equal(found.completion_mask, wanted.completion_mask)
  for name in ("logp", "sampled_logp"):
    np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=atol)


def test_real_prompts_get_the_same_candidates_with_and_without_segments():
  work = ToolWork(Workload(prompts=25, group_size=3), steps=4)
  sampling = SamplingConfig(3, 64, work.temperature, stop_ids=tuple(work.stop_ids))
  program = SampleProgram(work.config, ONE, sampling, worth=256.0)
  whole = dataclasses.replace(program, worth=np.inf)
  params, decoded, lengths = work.params(), np.zeros(2), set()
  for step in range(4):
    prompts = pad_to_bucket(work.prompts(step), 0, [448])
    lengths |= set(prompts.mask.sum(-1).tolist())
    (found, segments), (wanted, alone) = (
      one.run(params, None, prompts, jax.random.fold_in(KEY, step)) for one in (program, whole)
    )
    # XLA on CPU sums products in an order that depends on the number of rows. At this temperature a
    # logit's rounding counts twice.
    assert_same(found, wanted, atol=5e-5)
    assert np.mean(np.abs(found.logp - wanted.logp) < 1e-5) > 0.99
    assert len(alone) == 1 and len(segments) > 1
    decoded += rows_of(segments), rows_of(alone)
  assert len(lengths) > 50
  assert decoded[0] < 0.9 * decoded[1]


@pytest.fixture(scope="module")
def small():
  config = DecoderConfig(V, 8, 12, 1, 2, 1, 4)
  return config, jax.tree.map(lambda x: 5 * x, init_params(config, jax.random.key(0)))


def some_prompts(count, blank=()):
  rng = np.random.default_rng(count)
  mask = np.arange(4) >= rng.integers(0, 4, (count, 1))
  mask[list(blank)] = False
  return Prompts(rng.integers(0, V, (count, 4)).astype(np.int32), mask, np.arange(count))


@functools.partial(jax.jit, static_argnums=(0, 4))
def one_token(config, weights, state, ends, sampling):
  """One more token, and the end of those candidates that are to have no more."""
  state = decode(config, weights, state, sampling, state.step + 1)
  return end(state, ends)


def end(state, ends):
  return state._replace(ended=state.ended | (state.step >= ends[state.place]))


start = jax.jit(begin, static_argnums=(0, 4))
gather, put_back = jax.jit(compact, static_argnums=(2, 3)), jax.jit(settle)
COUNT, GROUP = 3, 5  # of neither is the half a whole number


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, T + 1), min_size=COUNT * GROUP, max_size=COUNT * GROUP))
@example([3] * 15)  # all at once
@example([1] * 15)
@example([1] * 8 + [T + 1] + [1] * 6)  # one goes on
@example([T + 1] * 15)  # none ends
@example([1, 5, 2, 5, 3, 5, 6, 1, 6, 1, 6, 1, 6, 1, 6])
def test_any_pattern_of_ends_gives_the_same(small, lengths):
  config, params = small
  ends = jnp.asarray(lengths)
  sampling, weights = SamplingConfig(GROUP, T), unstacked(config, params)
  whole = state = end(start(config, params, some_prompts(COUNT), KEY, sampling), ends)
  settled, shapes = None, [(COUNT, GROUP)]
  for _ in range(T - 1):
    live = ~np.asarray(whole.ended)
    shape = tuple(map(int, shape_left(state.ended)))
    assert (shape[1] > 0) == live.any()
    if not live.any():
      break
    needed = live.any(1).sum(), live.sum(1).max()
    for size, most, wanted in zip(shape, needed, (COUNT, GROUP), strict=True):
      assert size == min(n for n in halves(wanted) if n >= most)
    whole = one_token(config, weights, whole, ends, sampling)
    if shape != shapes[-1]:
      state, settled = gather(state, settled, *shape)
      shapes.append(shape)
      assert state.ended.shape == shape == state.prompt.mask.shape[:1] + state.token.shape[1:]
      assert state.prompt.layers[0].k.shape[0] == shape[0]  # a prompt is held once for its group
    state = one_token(config, weights, state, ends, sampling)
  drawn = put_back(settled, state)
  assert shapes == sorted(set(shapes), reverse=True)
  for found, wanted in zip(drawn, whole.drawn, strict=True):
    np.testing.assert_allclose(found, wanted, atol=1e-5)
  np.testing.assert_array_equal(drawn.tokens, whole.drawn.tokens)
  wanted = np.minimum(lengths, T).reshape(COUNT, GROUP, 1)
  np.testing.assert_array_equal(drawn.mask, np.arange(T) < wanted)


@pytest.mark.parametrize("stops", [(), (2, 3), tuple(range(V))])
def test_a_program_decodes_what_the_pure_function_does(small, stops):
  config, params = small
  sampling = SamplingConfig(3, 12, stop_ids=stops)
  prompts = jax.device_put(some_prompts(5, blank=[4]))
  wanted = jax.jit(sample_groups, static_argnums=(0, 4))(config, params, prompts, KEY, sampling)
  program = SampleProgram(config, ONE, sampling, worth=1.0)
  for _ in range(2):  # nothing of the caller's is donated
    found, segments = program.run(params, None, prompts, KEY)
    assert_same(found, wanted)
    np.testing.assert_array_equal(found.prompts.mask, some_prompts(5, blank=[4]).mask)
  lengths = np.asarray(wanted.completion_mask.sum(-1))
  assert (lengths[4] == 0).all() and (lengths[:4] > 0).all()
  assert 1 + sum(one.steps for one in segments) == lengths.max()
  sizes = [one.prompts * one.group for one in segments]
  assert sizes[0] == 15 and sizes == sorted(set(sizes), reverse=True)
  if stops == (2, 3):
    assert len(segments) > 2 and rows_of(segments) < 0.8 * 15 * (lengths.max() - 1)
  else:  # nothing to cut: all go on, or none does
    assert len(segments) == 1
  # What a smaller shape would save must be worth it.
  dear = dataclasses.replace(program, worth=15 * 12.0)
  assert len(dear.run(params, None, prompts, KEY)[1]) == 1


def test_generate_takes_the_longest_first_and_as_many_as_there_is_room_for(small):
  config, params = small
  rows, asked = [[1 + i % 3] * (1 + i) for i in range(30)], []
  # Every token ends a completion, but there must be room for all of them: 5 of 16384 / (64 + 3000).
  options = {"group_size": 2, "max_tokens": 1500, "stop_ids": tuple(range(V))}
  few = generate(config, params, rows, **options, between=asked.append)
  # Four at a time, for shapes are powers of two.
  assert asked == [0, 4, 8, 12, 16, 20, 24, 28, 30]
  asked.clear()
  options["max_tokens"] = 100
  assert few == generate(config, params, rows, **options, between=asked.append)
  assert asked == [0, 30]
  asked.clear()
  some = generate(config, params, rows[:7], **options, batch_prompts=3, between=asked.append)
  assert some == few[:7] and len(asked) == 4


def on_devices(*arguments):
  return subprocess.Popen(
    [sys.executable, str(SCRIPT), *arguments],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def what_they_say(processes):
  try:
    said = [process.communicate(timeout=300) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert not any(p.returncode for p in processes), "\n".join(error[-3000:] for _, error in said)
  return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.fixture(scope="module")
def eight_devices():
  return what_they_say([on_devices("8", " ".join(MESHES))])[0]


@pytest.mark.parametrize("mesh", MESHES)
def test_on_a_mesh_devices_keep_their_prompts_and_send_nothing(eight_devices, mesh):
  whole, segments, sent = (eight_devices[mesh][name] for name in ("whole", "segments", "sent"))
  assert segments["tokens"] == whole["tokens"]
  np.testing.assert_allclose(segments["logp"], whole["logp"], atol=1e-5)
  assert len(whole["shapes"]) == 1
  prompts, groups, _ = zip(*segments["shapes"], strict=True)
  assert (prompts[0], groups[0]) == (16, 2)
  assert prompts[-1] < 16 and groups[-1] < 2  # both are cut
  assert sent["gathering"] == [] and "all-reduce" in sent["decoding"]


def test_two_hosts_go_on_in_the_same_shapes(eight_devices):
  with socket.socket() as found:
    found.bind(("localhost", 0))
    port = found.getsockname()[1]
  hosts = (("4", MESHES[1], f"localhost:{port}", str(i)) for i in range(2))
  first, second = what_they_say([on_devices(*arguments) for arguments in hosts])
  assert first == second
  for name in ("whole", "segments"):
    one, two = first[MESHES[1]][name], eight_devices[MESHES[1]][name]
    assert (one["shapes"], one["tokens"]) == (two["shapes"], two["tokens"])
  assert first["generate"] == eight_devices["generate"]
