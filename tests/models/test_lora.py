"""Adapters against the base, against merged kernels, and against `peft`."""

from __future__ import annotations

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import (
  LoraConfig,
  attach,
  completion_logprobs,
  forward,
  init_adapters,
  load_adapters,
  load_pretrained,
  merge,
  save_adapters,
  save_pretrained,
  weights,
)
from grpo_jax.models.lora import TARGETS
from grpo_jax.models.tensor_file import TensorFile

LORA = LoraConfig(3, 6.0)
run = jax.jit(forward, static_argnums=0)
TOKENS = np.random.default_rng(0).integers(0, 67, (2, 7))
MASK = np.arange(7) >= np.array([[0], [2]])


def noisy(config, lora, size=0.05):
  """Adapters whose halves are both random: as training leaves them."""
  adapters = init_adapters(config, lora, jax.random.key(1))
  leaves, tree = jax.tree.flatten(adapters)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  noise = [size * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(tree, [x + n for x, n in zip(leaves, noise, strict=True)])


def logits(config, params):
  return np.asarray(run(config, params, TOKENS, MASK))


@pytest.mark.parametrize("targets", [TARGETS, ("q", "down")])
def test_the_merged_model_equals_the_adapted_one(tiny, targets):
  config, params = tiny
  lora = dataclasses.replace(LORA, targets=targets)
  adapted = attach(params, noisy(config, lora), lora)
  merged = merge(adapted)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  wanted = logits(config, merged)
  assert np.abs(wanted - logits(config, params)).max() > 0.1  # the adapters say something
  np.testing.assert_allclose(logits(config, adapted), wanted, atol=1e-5)


def test_fresh_adapters_are_the_base_to_the_bit(tiny):
  config, params = tiny
  adapters = init_adapters(config, LORA, jax.random.key(0))
  assert set(adapters) == {"layers"} and set(adapters["layers"]) == set(TARGETS)
  pair = adapters["layers"]["gate"]
  assert pair["lora_a"].shape == (2, 32, 3) and pair["lora_b"].shape == (2, 3, 48)
  bound = 32**-0.5
  assert 0.8 * bound < np.abs(pair["lora_a"]).max() <= bound and not np.any(pair["lora_b"])
  adapted = attach(params, adapters, LORA)
  np.testing.assert_array_equal(logits(config, adapted), logits(config, params))
  # Laid over, not copied: the base's leaves are the very same arrays.
  laid = [adapted["layers"][target].pop(half) for target in TARGETS for half in pair]
  assert len(laid) == 14 and jax.tree.structure(adapted) == jax.tree.structure(params)
  assert all(x is y for x, y in zip(*map(jax.tree.leaves, (adapted, params)), strict=True))


def test_the_gradient_is_that_of_the_kernel_by_the_chain_rule(tiny):
  config, params = tiny
  adapters = noisy(config, LORA)
  loss = lambda p: jnp.sum(jax.nn.log_softmax(forward(config, p, TOKENS, MASK))[..., 5])
  found = jax.jit(jax.grad(lambda a: loss(attach(params, a, LORA))))(adapters)
  assert jax.tree.structure(found) == jax.tree.structure(adapters)
  whole = jax.jit(jax.grad(loss))(merge(attach(params, adapters, LORA)))
  for layer, target in ((0, "q"), (0, "v"), (1, "down")):
    at = lambda tree, layer=layer, target=target: jax.tree.map(
      lambda x: x[layer], tree["layers"][target]
    )
    pair, kernel = at(adapters), at(whole)["kernel"]
    scale = LORA.alpha / LORA.rank
    for half, wanted in (
      ("lora_a", scale * kernel @ pair["lora_b"].T),
      ("lora_b", scale * pair["lora_a"].T @ kernel),
    ):
      atol = 1e-5 * np.abs(wanted).max()
      np.testing.assert_allclose(at(found)[half], wanted, rtol=1e-3, atol=atol)


def test_no_gradient_of_the_base_is_computed(tiny):
  config, params = tiny
  adapters = noisy(config, LORA)
  loss = lambda p: jnp.sum(forward(config, p, TOKENS, MASK) ** 2)
  flops = lambda f, *args: jax.jit(f).lower(*args).compile().cost_analysis()["flops"]
  forwards = flops(loss, params)
  full = flops(jax.grad(loss), params)
  lora = flops(jax.grad(lambda a, base: loss(attach(base, a, LORA))), adapters, params)
  # A product's backward pass is two products of its size, one for each side; here one is left.
  assert full > 2.7 * forwards
  assert lora < 2.6 * forwards  # two, and the adapters themselves: rank 3 is not small beside 32


def test_a_change_too_small_for_bfloat16_weights_is_not_lost(tiny):
  config = dataclasses.replace(tiny[0], dtype="bfloat16")
  base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny[1])
  lora = LoraConfig(1, 1.0, ("down",))
  adapters = jax.tree.map(lambda x: jnp.full_like(x, 0.015), noisy(config, lora))
  adapted = attach(base, adapters, lora)
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), merge(adapted))
  kernel = base["layers"]["down"]["kernel"]
  kept = np.mean(np.asarray(rounded["layers"]["down"]["kernel"] == kernel))
  assert kept > 0.5  # most weights would not have moved at all
  moved = np.abs(logits(config, adapted) - logits(config, base))
  assert moved.max() > 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_save_merges_one_kernel_at_a_time(tiny, tmp_path, monkeypatch, dtype):
  config = dataclasses.replace(tiny[0], dtype=dtype)
  base = jax.tree.map(lambda x: x.astype(dtype), tiny[1])
  adapted = attach(base, noisy(config, dataclasses.replace(LORA, targets=("q", "down"))), LORA)
  in_float32 = lambda: sum(x.nbytes for x in jax.live_arrays() if x.dtype == jnp.float32)
  live, to_host = [], weights.host_array

  def watched(*arguments):
    live.append(in_float32())
    return to_host(*arguments)

  monkeypatch.setattr(weights, "host_array", watched)
  before = in_float32()
  save_pretrained(config, adapted, tmp_path, dtype="float32")
  # The kernel of `down` in one layer, and as it is merged.
  assert max(live) - before <= 2 * 48 * 32 * 4

  found = load_pretrained(tmp_path)[1]
  jax.tree.map(
    np.testing.assert_array_equal,
    found,
    jax.tree.map(lambda x: x.astype(jnp.float32), merge(adapted)),
  )
  layer = jax.tree.map(lambda x: x[1], adapted["layers"]["q"])
  change = jnp.matmul(layer["lora_a"], layer["lora_b"], precision="highest")
  wanted = layer["kernel"].astype(jnp.float32) + change
  np.testing.assert_array_equal(found["layers"]["q"]["kernel"][1], wanted)
  # Without a dtype a merged kernel is float32, and what has no adapter stays as it is.
  save_pretrained(config, adapted, tmp_path)
  stored = TensorFile(tmp_path / "model.safetensors").dtypes
  own = {"float32": "F32", "bfloat16": "BF16"}[dtype]
  assert stored["model.layers.1.self_attn.q_proj.weight"] == "F32"
  assert stored["model.layers.1.self_attn.k_proj.weight"] == own


def test_adapters_come_back_as_they_were_saved(tiny, tmp_path):
  config, _ = tiny
  lora = LoraConfig(3, 5.0, ("v", "up"))
  adapters = noisy(config, lora)
  save_adapters(config, adapters, lora, tmp_path, "owner/name@abc")
  found, described = load_adapters(tmp_path, config)
  assert described == lora
  jax.tree.map(np.testing.assert_array_equal, found, adapters)
  said = json.loads((tmp_path / "adapter_config.json").read_text())
  assert (said["base_model_name_or_path"], said["revision"]) == ("owner/name", "abc")
  assert said["target_modules"] == ["v_proj", "up_proj"]


def test_the_base_s_folder_is_named_whole(tiny, tmp_path):
  config, _ = tiny
  folder = tmp_path / "models@home" / "base"
  folder.mkdir(parents=True)
  save_adapters(config, noisy(config, LORA), LORA, tmp_path / "adapter", str(folder))
  said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
  assert (said["base_model_name_or_path"], said["revision"]) == (str(folder), None)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"use_dora": True}, "use_dora is not supported"),
    ({"bias": "all"}, "bias=all is not supported"),
    ({"peft_type": "LOHA"}, "LOHA"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
    ({"r": 4}, r"q_proj.lora_A.weight has shape \(3, 32\), expected \(4, 32\)"),
  ],
)
def test_adapters_of_another_kind_are_refused(tiny, tmp_path, change, message):
  config, _ = tiny
  save_adapters(config, noisy(config, LORA), LORA, tmp_path, "base")
  path = tmp_path / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match=message):
    load_adapters(tmp_path, config)


def test_adapters_of_another_model_are_refused(tiny, tmp_path):
  config, _ = tiny
  save_adapters(config, noisy(config, LORA), LORA, tmp_path, "base")
  with pytest.raises(ValueError, match=r"unexpected base_model.model.model.layers.1."):
    load_adapters(tmp_path, dataclasses.replace(config, num_layers=1))
  (tmp_path / "adapter_model.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors"):
    load_adapters(tmp_path, config)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"rank": 0}, "lora_rank=0"),
    ({"rank": 4, "alpha": 0.0}, "lora_alpha=0"),
    ({"rank": 4, "targets": ("q", "head")}, "lora_targets=q,head; expected some of q,k,v,o"),
    ({"rank": 4, "targets": ()}, "expected some of"),
  ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    LoraConfig(**settings)


def test_peft_loads_ours_and_we_load_peft_s(tiny, tmp_path):
  torch = pytest.importorskip("torch")
  peft = pytest.importorskip("peft")
  os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
  import transformers

  def theirs(model):
    with torch.no_grad():
      found = model(torch.tensor(TOKENS), attention_mask=torch.tensor(MASK).long()).logits
    return found.float().numpy()[MASK]

  config, params = tiny
  save_pretrained(config, params, tmp_path / "base")
  base = lambda: transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "base", dtype=torch.float32
  )
  lora = dataclasses.replace(LORA, targets=("q", "k", "o", "gate", "down"))
  adapters = noisy(config, lora)
  ours = logits(config, attach(params, adapters, lora))[MASK]
  save_adapters(config, adapters, lora, tmp_path / "adapter", str(tmp_path / "base"))
  loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter")
  np.testing.assert_allclose(theirs(loaded), ours, atol=1e-4)
  assert np.abs(ours - logits(config, params)[MASK]).max() > 0.1
  # `peft` can also find the base by the adapter's own description.
  alone = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
  np.testing.assert_allclose(theirs(alone), ours, atol=1e-4)

  # The other way: an adapter that peft made, trained by noise, of two kinds of layers.
  torch.manual_seed(0)
  made = peft.get_peft_model(
    base(), peft.LoraConfig(r=2, lora_alpha=5, target_modules=["v_proj", "up_proj"])
  )
  for name, parameter in made.named_parameters():
    if "lora_" in name:
      parameter.data.add_(0.1 * torch.randn_like(parameter))
  made.save_pretrained(tmp_path / "made")
  found, described = load_adapters(tmp_path / "made", config)
  assert described == LoraConfig(2, 5, ("v", "up"))
  reloaded, same = load_pretrained(tmp_path / "base")
  np.testing.assert_allclose(
    logits(reloaded, attach(same, found, described))[MASK], theirs(made.eval()), atol=1e-4
  )


@pytest.mark.parametrize("remat", ["dots", "layers"])
def test_recomputing_layers_changes_no_gradient(tiny, remat):
  config, params = tiny
  adapters = noisy(config, LORA)
  completions = np.random.default_rng(1).integers(0, 67, (2, 2, 3))

  def slope(how):
    def loss(a):
      whole = attach(params, a, LORA)
      return completion_logprobs(config, whole, TOKENS, MASK, completions, remat=how).logp.sum()

    return jax.jit(jax.grad(loss))(adapters)

  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), slope(remat), slope("none")
  )
