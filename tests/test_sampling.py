"""Filters and draws against independent calculations, and what a candidate may depend on."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from grpo_jax.models import (
  DecoderConfig,
  LoraConfig,
  completion_logprobs,
  forward,
  in_compute_dtype,
  init_adapters,
  init_params,
)
from grpo_jax.sampling import (
  SampleProgram,
  SamplingConfig,
  draw,
  filtered_logits,
  generate,
  invert_cdf,
  sample_groups,
  sample_program,
)
from grpo_jax.sharding import make_mesh
from grpo_jax.types import Prompts

V = 67
sample = jax.jit(sample_groups, static_argnums=(0, 4))
whole = jax.jit(forward, static_argnums=0)


def prompts_of(rows, width, side="left", index=None):
  tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
  for i, row in enumerate(rows):
    place = slice(width - len(row), None) if side == "left" else slice(len(row))
    tokens[i, place], mask[i, place] = row, True
  return Prompts(tokens, mask, np.arange(len(rows)) if index is None else np.asarray(index))


ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9]]
KEY = jax.random.key(3)


def next_logits(tiny, row, completion):
  """Logits [T, V] that predict each token of a completion, without any cache or padding."""
  tokens = np.asarray([[*row, *completion]])
  return np.asarray(whole(*tiny, tokens, np.ones(tokens.shape, bool)))[0, len(row) - 1 : -1]


def kept_by_hand(logits, cfg):
  """The distribution that is sampled from, token by token in float64, filter after filter."""
  chance = np.exp(np.float64(logits) / cfg.temperature - np.max(logits) / cfg.temperature)
  kept = list(np.argsort(-chance, kind="stable"))
  if cfg.top_k:
    kept = kept[: cfg.top_k]
  if cfg.top_p < 1:
    total, reached, few = sum(chance[i] for i in kept), 0.0, []
    for i in kept:  # the smallest set of likeliest tokens that reaches top_p
      few.append(i)
      reached += chance[i] / total
      if reached >= cfg.top_p:
        break
    kept = few
  kept = [i for i in kept if chance[i] >= cfg.min_p * chance[kept[0]]]
  result = np.zeros(len(chance))
  result[kept] = chance[kept]
  return result / result.sum()


FILTERS = {
  "plain": SamplingConfig(),
  "cold": SamplingConfig(temperature=0.5),
  "hot": SamplingConfig(temperature=1.7),
  "top_k": SamplingConfig(top_k=5),
  "top_k_beyond_the_vocabulary": SamplingConfig(top_k=1000),
  "top_p": SamplingConfig(top_p=0.8),
  "top_p_of_one_token": SamplingConfig(top_p=1e-6),
  "min_p": SamplingConfig(min_p=0.15),
  "all": SamplingConfig(temperature=1.3, top_k=9, top_p=0.85, min_p=0.1),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_equal_an_independent_calculation(name):
  cfg = FILTERS[name]
  logits = np.random.default_rng(0).normal(size=(20, V)).astype(np.float32) * 2
  wanted = np.stack([kept_by_hand(row, cfg) for row in logits])
  found = jax.nn.softmax(filtered_logits(logits / cfg.temperature, cfg), axis=-1)
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  np.testing.assert_array_equal(np.asarray(found) > 0, wanted > 0)
  if name == "top_p_of_one_token":
    assert ((wanted > 0).sum(-1) == 1).all()


@pytest.mark.parametrize("name", ["top_k", "top_p", "top_p_of_one_token", "all"])
def test_of_equal_tokens_the_first_are_kept_and_no_more(name):
  cfg = FILTERS[name]
  logits = np.random.default_rng(0).integers(-2, 3, (20, V)).astype(np.float32)  # many are equal
  logits[0] = 0.0
  logits[1] = np.where(np.arange(V) % 2, 0.0, -0.0)
  wanted = np.stack([kept_by_hand(row, cfg) for row in logits])
  found = jax.jit(filtered_logits, static_argnums=1)(logits / cfg.temperature, cfg)
  np.testing.assert_array_equal(np.isfinite(found), wanted > 0)
  if name == "top_k":
    assert np.flatnonzero(np.isfinite(found[0])).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["plain", "cold", "all"])
def test_draws_have_the_frequencies_of_the_distribution(name):
  cfg = FILTERS[name]
  logits = np.random.default_rng(1).normal(size=12).astype(np.float32)
  number = 20_000
  uniform = jax.random.uniform(jax.random.key(0), (number,))
  token, logp, sampled = jax.jit(draw, static_argnums=2)(
    jnp.broadcast_to(logits, (number, 12)), uniform, cfg
  )
  chance = kept_by_hand(logits, cfg)
  counts = np.bincount(token, minlength=12)
  assert counts[chance == 0].sum() == 0
  assert stats.chisquare(counts[chance > 0], number * chance[chance > 0]).pvalue > 1e-3
  np.testing.assert_allclose(sampled, np.log(chance[token]), atol=1e-5)
  np.testing.assert_allclose(logp, jax.nn.log_softmax(logits / cfg.temperature)[token], atol=1e-5)


def test_candidates_have_the_frequencies_of_the_policy(tiny):
  config, params = tiny
  group = 1500
  cfg = SamplingConfig(group_size=group, max_tokens=2)
  tokens = np.asarray(sample(config, params, prompts_of(ROWS[:1], 5), KEY, cfg).tokens[0])
  chance = np.asarray(jax.nn.softmax(next_logits(tiny, ROWS[0], [0])[0]), np.float64)
  # The second token's frequencies over all first ones: they differ if a step's draw is used twice.
  pairs = np.array([[*ROWS[0], token] for token in range(V)])
  after = jax.nn.softmax(whole(config, params, pairs, np.ones(pairs.shape, bool))[:, -1])
  for position, wanted in ((0, chance), (1, chance @ np.asarray(after, np.float64))):
    counts, wanted = np.bincount(tokens[:, position], minlength=V), wanted / wanted.sum()
    often = group * wanted >= 5
    counts = [*counts[often], counts[~often].sum()]
    wanted = [*wanted[often], wanted[~often].sum()]
    assert stats.chisquare(counts, group * np.array(wanted)).pvalue > 1e-3
    assert len(counts) > 5


def test_inverse_of_the_cumulative_distribution():
  chance = np.array([0.0, 0.25, 0.0, 0.5, 0.25], np.float32)
  uniform = np.array([0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 0.9999], np.float32)
  wanted = [1, 1, 3, 3, 3, 4, 4]
  found = invert_cdf(jnp.broadcast_to(chance, (7, 5)), uniform)
  np.testing.assert_array_equal(found, wanted)
  wide = np.random.default_rng(0).random(1000).astype(np.float32)  # more than one block
  wide /= wide.sum()
  edges = np.cumsum(np.float64(wide))
  middles = (edges - wide / 2).astype(np.float32)
  found = invert_cdf(jnp.broadcast_to(wide, (1000, 1000)), middles)
  np.testing.assert_array_equal(found, np.arange(1000))


def test_a_token_without_a_chance_is_never_drawn():
  # Uniform numbers at and around every edge of the distribution, where rounding decides.
  rng, run = np.random.default_rng(0), jax.jit(invert_cdf)
  for vocab in (40, 300, 1000):
    for _ in range(8):
      chance = rng.random(vocab).astype(np.float32) ** 4
      chance[rng.random(vocab) < 0.7] = 0
      chance /= chance.sum()
      edges = np.cumsum(chance)
      near = (edges + np.float32(6e-8) * np.arange(-4, 5, dtype=np.float32)[:, None]).ravel()
      uniform = np.append(np.clip(near, 0, 1 - 2**-24), [0.0, 1 - 2**-24]).astype(np.float32)
      token = np.asarray(run(jnp.broadcast_to(chance, (len(uniform), vocab)), uniform))
      assert (chance[token] > 0).all()


def test_temperature_zero_takes_the_likeliest_token(tiny):
  cfg = SamplingConfig(group_size=2, max_tokens=6, temperature=0)
  rollout = sample(*tiny, prompts_of(ROWS, 8), KEY, cfg)
  for p, row in enumerate(ROWS):
    for completion in np.asarray(rollout.tokens[p]):
      np.testing.assert_array_equal(next_logits(tiny, row, completion).argmax(-1), completion)
  np.testing.assert_array_equal(rollout.sampled_logp, 0.0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_sampler_and_trainer_log_probs_agree(tiny, side):
  cfg = SamplingConfig(5, 7, temperature=0.8, top_k=30, top_p=0.95, stop_ids=tuple(range(0, V, 9)))
  prompts = prompts_of(ROWS, 9, side)
  rollout = sample(*tiny, prompts, KEY, cfg)
  trained = jax.jit(completion_logprobs, static_argnums=0, static_argnames="temperature")(
    *tiny, prompts.tokens, prompts.mask, rollout.tokens, temperature=0.8
  )
  mask = np.asarray(rollout.completion_mask)
  assert 1 < mask.sum(-1).min() + 1 < mask.sum(-1).max() <= 7  # lengths differ
  np.testing.assert_allclose(np.asarray(rollout.logp)[mask], trained.logp[mask], atol=1e-5)
  for p, row in enumerate(ROWS):
    for g in range(5):
      drawn = np.asarray(rollout.tokens[p, g])[mask[p, g]]
      logits = next_logits(tiny, row, drawn)
      chance = [kept_by_hand(one, cfg)[token] for one, token in zip(logits, drawn, strict=True)]
      found = np.asarray(rollout.sampled_logp[p, g])[mask[p, g]]
      np.testing.assert_allclose(found, np.log(chance), atol=1e-4)


def test_a_candidate_does_not_depend_on_its_neighbours(tiny):
  together = sample(*tiny, prompts_of(ROWS, 8), KEY, SamplingConfig(4, 8, stop_ids=(2, 3)))
  for i, row in enumerate(ROWS):
    for side, width in (("left", 12), ("right", 9)):
      alone = prompts_of([row], width, side, index=[i])
      fewer = sample(*tiny, alone, KEY, SamplingConfig(2, 8, stop_ids=(2, 3)))
      np.testing.assert_array_equal(fewer.tokens[0], together.tokens[i, :2])
      np.testing.assert_array_equal(fewer.completion_mask[0], together.completion_mask[i, :2])
  tokens = np.asarray(together.tokens)
  assert len({tuple(c) for c in tokens.reshape(-1, 8)}) == 12  # and no two are alike
  # The same prompt at another place in the batch, or in another step, gets other candidates.
  moved = prompts_of([ROWS[0]], 8, index=[5])
  for other in (sample(*tiny, moved, KEY, SamplingConfig(4, 8, stop_ids=(2, 3))),
                sample(*tiny, prompts_of(ROWS, 8), jax.random.key(4),
                       SamplingConfig(4, 8, stop_ids=(2, 3)))):  # fmt: skip
    assert not np.array_equal(other.tokens[0], tokens[0])


def test_each_of_several_stop_tokens_ends_a_completion_and_belongs_to_it(tiny):
  stops = tuple(range(0, V, 5))
  cfg = SamplingConfig(40, 10, stop_ids=stops, pad_id=1)
  rollout = jax.tree.map(np.asarray, sample(*tiny, prompts_of(ROWS, 8), KEY, cfg))
  seen = set()
  for tokens, mask, logp, sampled in zip(
    *(
      x.reshape(-1, 10)
      for x in (rollout.tokens, rollout.completion_mask, rollout.logp, rollout.sampled_logp)
    ),
    strict=True,
  ):
    ends = np.flatnonzero(np.isin(tokens, stops))
    length = ends[0] + 1 if len(ends) else 10
    np.testing.assert_array_equal(mask, np.arange(10) < length)
    assert (tokens[length:] == 1).all() and (logp[:length] < 0).all()
    assert not logp[length:].any() and not sampled[length:].any()
    seen |= {int(tokens[e]) for e in ends} | {f"length {length}"}
  assert {"length 1", "length 10"} <= seen and len(seen & set(stops)) >= 3


def test_decoding_ends_with_the_last_candidate(tiny):
  config, params = tiny
  cfg = SamplingConfig(2, 400, temperature=0, stop_ids=(0,))
  # Greedy over a head of zeros takes token 0 and stops; over (0, v, -v, 0..) it never does.
  ends = {**params, "head": {"kernel": jnp.zeros_like(params["head"]["kernel"])}}
  column = params["head"]["kernel"][:, 1]
  kernel = ends["head"]["kernel"].at[:, 1].set(column).at[:, 2].set(-column)
  goes_on = {**params, "head": {"kernel": kernel}}
  seconds, lengths = [], []
  for weights in (goes_on, ends, goes_on, ends):
    began = time.perf_counter()
    rollout = jax.block_until_ready(sample(config, weights, prompts_of(ROWS, 8), KEY, cfg))
    seconds.append(time.perf_counter() - began)
    lengths.append(int(rollout.completion_mask.sum(-1).max()))
  assert lengths == [400, 1, 400, 1]
  assert seconds[3] < seconds[2] / 5


def test_generate_gives_the_same_for_every_batching(tiny):
  options = {"group_size": 2, "max_tokens": 6, "seed": 5, "stop_ids": (2, 3, 4)}
  rows = [*ROWS, [1] * 40]  # a second length bucket
  results = [generate(*tiny, rows, **options, batch_prompts=n) for n in (2, 4)]
  assert results[0] == results[1]
  assert [len(group) for group in results[0]] == [2] * 4
  for group in results[0]:
    for completion in group:
      assert 1 <= len(completion) <= 6 and not {2, 3, 4} & set(completion[:-1])
      assert len(completion) == 6 or completion[-1] in (2, 3, 4)
  assert generate(*tiny, rows, **{**options, "seed": 6}) != results[0]
  # A prompt's candidates depend on its place, not on what else there is.
  assert generate(*tiny, rows[:1], **options) == results[0][:1]


def test_one_token_is_enough(tiny):
  rollout = sample(*tiny, prompts_of(ROWS, 8), KEY, SamplingConfig(2, 1))
  assert rollout.tokens.shape == (3, 2, 1) and bool(rollout.completion_mask.all())


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"group_size": 0}, "--group_size=0 must be at least 1"),
    ({"max_tokens": 0}, "--max_completion_tokens=0 must be at least 1"),
    ({"temperature": -0.1}, "--temperature=-0.1 must be at least 0"),
    ({"top_k": -1}, "--top_k=-1 must be at least 0"),
    ({"top_p": 0.0}, "--top_p=0.0 must be above 0 and at most 1"),
    ({"top_p": 1.1}, "--top_p=1.1 must be"),
    ({"min_p": 1.0}, "--min_p=1.0 must be at least 0 and below 1"),
  ],
)
def test_settings_out_of_range_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    SamplingConfig(**wrong)


def test_an_empty_prompt_is_refused(tiny):
  with pytest.raises(ValueError, match="at least one token"):
    generate(*tiny, [[1], []])


def one_device_program(dtype, adapted):
  """A `SampleProgram` on one device, and arguments for it."""
  config = DecoderConfig(V, 64, 192, 4, 4, 2, 16, dtype=dtype)
  lora = LoraConfig(4, 8.0) if adapted else None
  params = jax.tree.map(lambda x: 5 * x, init_params(config, jax.random.key(0)))
  base = in_compute_dtype(config, params) if adapted else None
  if lora:
    adapters = init_adapters(config, lora, jax.random.key(1))
    params = jax.tree.map(lambda x: x + 0.1, adapters)
  cfg = SamplingConfig(group_size=4, max_tokens=12, stop_ids=(2, 3))
  program = sample_program(config, make_mesh("data:1,fsdp:1,tensor:1"), cfg, lora)
  return program, (params, base, prompts_of(ROWS, 8), KEY)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapted", [False, True])
def test_layers_taken_apart_before_the_program_change_no_bit(dtype, adapted):
  program, given = one_device_program(dtype, adapted)
  wanted = program.trace(*given).lower().compile()(*given)  # taken apart inside, in one program
  for found in (program(*given), program.compile(*given)(*given)):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert len(np.unique(wanted.tokens)) > 10


@pytest.mark.parametrize("adapted", [False, True])
def test_segments_take_no_more_memory_than_one_program(adapted):
  program, given = one_device_program("float32", adapted)
  whole = program.trace(*given).lower().compile().memory_analysis()
  weights, state = program.weights(*given[:2]), program._begin(*given)
  arguments = (program, weights, state, *program._limits())
  decode = SampleProgram._decode.lower(*arguments).compile().memory_analysis()
  stacks = sum(x.nbytes for x in jax.tree.leaves([tree["layers"] for tree in given[:2] if tree]))
  held = stacks + decode.argument_size_in_bytes + decode.temp_size_in_bytes
  assert held <= 1.01 * (whole.argument_size_in_bytes + whole.temp_size_in_bytes)
  # The state is decoded in place.
  size = sum(
    x.nbytes for x in jax.tree.leaves(state._replace(keys=jax.random.key_data(state.keys)))
  )
  assert decode.alias_size_in_bytes >= size
  layers = sum(x.nbytes for x in jax.tree.leaves(weights["layers"]))
  assert decode.temp_size_in_bytes <= whole.temp_size_in_bytes - 0.9 * layers


def test_generate_draws_what_sample_groups_draws(tiny):
  config, params = tiny
  tokens = generate(config, params, ROWS, group_size=3, max_tokens=7, seed=5, batch_prompts=3)
  rollout = sample(config, params, prompts_of(ROWS, 32), jax.random.key(5), SamplingConfig(3, 7))
  np.testing.assert_array_equal(tokens, rollout.tokens)
