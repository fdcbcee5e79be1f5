"""A plan's numbers against hand counts, and against what XLA says of the same programs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from grpo_jax.config import GRPOConfig, OptimizerConfig, SamplingConfig
from grpo_jax.models import DecoderConfig, LoraConfig, empty_completion_cache
from grpo_jax.models.parameters import layer_count, parameter_count
from grpo_jax.planner import Job, describe, make_plan, parse_topology, plan_mesh
from grpo_jax.planner.arithmetic import caches, resident
from grpo_jax.planner.compiled import Program, memory_asked_for
from grpo_jax.planner.plan import extrapolated_bytes
from grpo_jax.planner.report import as_record

ROOT = Path(__file__).parents[2]
CONFIG = DecoderConfig(128, 64, 96, 2, 4, 2, 16, dtype="bfloat16")
GRPO = GRPOConfig(sampling=SamplingConfig(group_size=4, max_tokens=9), micro_batch_prompts=8)
WITH_KL = dataclasses.replace(GRPO, kl_weight=0.1)
H100 = parse_topology("h100:8")


def job(mesh="fsdp:8", **changes) -> Job:
  wanted = Job(CONFIG, plan_mesh(mesh, H100), GRPO, 16, 32)
  return dataclasses.replace(wanted, **changes)


def test_what_is_resident_is_counted_exactly():
  layer = 64 * (64 + 32 + 32) + 64 + 32 + 32 + 64 * 64 + 3 * 64 * 96 + 2 * 64
  params = 2 * layer + 2 * 128 * 64 + 64
  assert parameter_count(CONFIG) == params
  held = resident(job("data:8"))
  assert held.parameters == 4 * params and held.reference == 0
  assert held.optimizer == 2 * 4 * params + 2 * 4  # two moments, two counters
  # Matrices are split eight ways, norms and biases are not.
  small = 2 * (64 + 32 + 32 + 2 * 64) + 64
  assert resident(job()).parameters == 4 * ((params - small) // 8 + small)
  assert resident(job(grpo=WITH_KL)).reference == held.parameters // 8 + 4 * small * 7 // 8


def test_adapters_are_trained_on_a_base_in_the_compute_dtype():
  plan = make_plan(
    job(lora=LoraConfig(4, targets=("q", "down")), grpo=WITH_KL), H100, largest=False
  )
  held, whole = plan.resident, resident(job())
  # q: A [64, 4] split eight ways, B [4, 64] not; down: A [96, 4] not, B [4, 64] split eight ways.
  ours = 4 * 2 * (64 * 4 // 8 + 4 * 64 + 96 * 4 + 4 * 64 // 8)
  assert (held.parameters, held.base) == (ours, whole.parameters // 2)
  assert held.reference == 0  # the base is the reference
  assert held.optimizer == 2 * ours + 2 * 4
  # No gradient of a frozen kernel: the update computes less than the whole model's.
  full = make_plan(job(grpo=WITH_KL), H100, largest=False)
  assert plan.phases["update"].flops < 0.9 * full.phases["update"].flops
  assert "adapters of rank 4" in describe(plan) and "frozen base, bfloat16" in describe(plan)


def test_adafactor_needs_less_memory():
  assert (
    resident(job(optimizer=OptimizerConfig(optimizer="adafactor"))).optimizer
    < resident(job()).optimizer
  )


def test_caches_are_those_that_the_sampler_makes():
  held = caches(job())
  own = jax.eval_shape(lambda: empty_completion_cache(CONFIG, 16 // 8, 4, 9 - 1))
  assert held.completions == sum(x.size * 2 for x in jax.tree.leaves(own))
  assert held.prompts == 2 * 2 * 2 * 2 * 32 * 16 * 2  # layers, k and v, prompts, heads, S, H, bytes
  assert caches(job("fsdp:4,tensor:2")).prompts == held.prompts  # half the heads, twice the prompts


def test_work_is_that_of_the_formula(monkeypatch):
  plan = make_plan(job(), H100, largest=False)
  layer = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 96
  matrices = lambda tokens: 2 * tokens * layer  # two layers
  head = 128 * 64
  rotation = (
    2 * 2 * (CONFIG.head_dim // 2) ** 2
  )  # cosines and sines by the identity: xla_cpu.stored
  attention = lambda rows, seen: 2 * 2 * rows * seen * 64  # two products, one layer
  local = 2  # prompts on a device
  prompt = 2 * attention(32, 32)
  prefill = local * (2 * (matrices(32) + head) + prompt + 32 * rotation)
  assert plan.phases["prefill"].flops == pytest.approx(prefill)
  steps = 9 - 1
  decode = local * 4 * steps * (2 * (matrices(1) + head) + 2 * attention(1, 32 + 8) + rotation)
  assert plan.phases["decode"].flops == pytest.approx(decode)
  own = 2 * attention(4 * 8, 32 + 8)
  forward = 2 * (matrices(32 + 4 * 8) + 4 * 9 * head) + prompt + own
  assert plan.phases["update"].flops == pytest.approx(local * 3 * forward, rel=0.002)
  # In several pieces, the logits are computed again.
  monkeypatch.setattr("grpo_jax.models.logprobs.CHUNK_BYTES", 4 * local * 12 * 128)
  again = make_plan(job(), H100, largest=False).phases["update"].flops
  assert again - plan.phases["update"].flops == local * 2 * 4 * 9 * head


def test_weights_are_gathered_once_for_decoding_or_for_every_token():
  apart = dataclasses.replace(GRPO, gather_weights=False)
  once, always = (make_plan(job(grpo=grpo), H100, largest=False) for grpo in (GRPO, apart))
  weights = 2 * parameter_count(CONFIG)
  assert once.phases["decode"].sent_bytes == 0
  assert always.phases["decode"].sent_bytes == pytest.approx((9 - 1) * weights * 7 / 8)
  assert once.estimated[0] >= weights  # bfloat16, whole
  # The prompts' own pass gathers them in any case, a layer at a time.
  sent = lambda plan: plan.phases["prefill"].sent_bytes
  layers = 2 * 2 * layer_count(CONFIG)
  assert sent(always) == pytest.approx(weights * 7 / 8)
  assert sent(once) == pytest.approx((weights + layers) * 7 / 8)


def test_larger_batches_that_fit_are_found():
  plan = make_plan(job(), H100)
  sampled, learned = plan.largest
  assert sampled % 8 == learned % 8 == 0 and sampled > 16 and learned > 8
  assert plan.fits and plan.step_seconds > 0
  # With the memory just used there is room for what is there and no more.
  tight = dataclasses.replace(
    H100, chip=dataclasses.replace(H100.chip, hbm_bytes=int(plan.sampling_bytes / 0.75) + 1)
  )
  assert make_plan(job(), tight).largest[0] == 16


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_a_gpu_has_what_jax_takes_of_it(monkeypatch, name):
  def limit() -> float:
    plan = make_plan(job(), H100, largest=False)
    assert f"JAX takes {plan.limit / 80e9:.0%} of a GPU's memory" in describe(plan)
    return plan.limit

  for other in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
    monkeypatch.delenv(other, raising=False)
  assert limit() == 0.75 * 80e9
  monkeypatch.setenv(name, "0.9")
  assert limit() == 0.9 * 80e9
  for wrong in ("most", "0", "-1", "nan"):
    monkeypatch.setenv(name, wrong)
    with pytest.raises(ValueError, match=f"{name}={wrong}: expected a positive number"):
      limit()


def test_the_report_says_what_does_not_fit():
  small = dataclasses.replace(H100, chip=dataclasses.replace(H100.chip, hbm_bytes=1 << 18))
  plan = make_plan(job(), small)
  assert not plan.fits and plan.largest == (0, 0)
  text = describe(plan)
  assert "does NOT fit" in text and "arithmetic" in text
  record = json.loads(json.dumps(as_record(plan)))
  assert record["fits"] is False and record["phases"]["decode"]["flops"] > 0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"prompts_per_step": 12}, "8 parts, which do not divide --prompts_per_step=12"),
    ({"prompts_per_step": 24, "grpo": dataclasses.replace(GRPO, micro_batch_prompts=16)},
     "micro_batch_prompts=16 does not divide the 24"),
  ],
)  # fmt: skip
def test_batches_that_do_not_divide_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    job(**changes)


def test_a_line_through_two_depths():
  program = lambda job: Program("update", 1.0, 10 + 3 * job.config.num_layers, 5, 7)
  deep = job().with_layers(28)
  assert extrapolated_bytes(program, deep) == program(deep).total == 10 + 3 * 28 + 5 + 7


def test_a_refusal_of_the_compiler_is_read():
  message = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
  )
  assert memory_asked_for(message) == int(20.5 * 2**30)
  alone = "the total memory required for HLO temporaries (17.39G) exceeds available HBM (15.75G)."
  assert memory_asked_for(f"RESOURCE_EXHAUSTED: Ran out of memory on HBM, {alone}") == int(
    17.39 * 2**30
  )
  assert memory_asked_for("INTERNAL: something else") is None


@pytest.fixture(scope="module")
def compiled():
  """Plans of programs compiled for 8 CPU devices, from a process that has them."""
  script = Path(__file__).with_name("plan_cpu.py")
  done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_compiled_arguments_are_what_is_resident(compiled):
  for mesh, found in compiled.items():
    held = found["resident"]
    # Beside them stand a batch of tokens, or prompts and a key.
    assert found["update"]["arguments"] == pytest.approx(sum(held.values()), rel=0.02), mesh
    assert found["sample"]["arguments"] == pytest.approx(held["parameters"], rel=0.04), mesh


def test_no_device_repeats_anothers_work(compiled):
  for mesh, found in compiled.items():
    for program in ("sample", "update"):
      # XLA counts additions and the like, too.
      share = found[program]["xla_flops"] / found[program]["once_flops"]
      assert 0.99 < share < 1.1, (mesh, program)


def test_fsdp_gathers_weights_and_never_the_batch(compiled):
  for mesh, found in compiled.items():
    assert found["weights_gathered"], mesh
    assert not found["batch_moved"], (mesh, found["batch_moved"])


def test_depth_is_linear(compiled):
  found = compiled["fsdp:8"]
  assert found["line"] == pytest.approx(found["five"], rel=0.01)


def test_messages_of_decoding_are_told_from_those_before(compiled):
  sample = compiled["fsdp:8"]["sample"]
  before, all_sent = sample["sent_before"], sum(sent for _, sent in sample["sent"].values())
  weights = compiled["fsdp:8"]["resident"]["parameters"] * 7  # each device sends what others lack
  # The prompts' pass gathers weights, decoding its layers'; tokens are sent in the loop.
  layers = 4 * (weights // 4 // 7 * 8 - 2 * 512 * 128) // 8 * 7
  assert before == pytest.approx(weights + layers, rel=0.1) and before < all_sent


@pytest.mark.slow
def test_a_tpu_program_is_compiled_without_a_tpu(tmp_path):
  pytest.importorskip("libtpu")
  path = tmp_path / "config.json"
  # Sides that a TPU's tiles of 8 x 128 divide: smaller ones are padded to twice their bytes.
  wide = dataclasses.replace(CONFIG, hidden_size=512, intermediate_size=1024, head_dim=128)
  path.write_text(json.dumps(wide.to_hf()), encoding="utf-8")
  arguments = {
    "model": path, "topology": "v5e:2x2", "prompts_per_step": 4, "group_size": 2,
    "max_prompt_tokens": 128, "max_completion_tokens": 8, "json": tmp_path / "plan.json",
  }  # fmt: skip
  done = subprocess.run(
    [sys.executable, "experiments/plan.py", *(f"--{k}={v}" for k, v in arguments.items())],
    cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "it FITS" in done.stdout
  plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
  held = sum(plan["resident_bytes"].values())
  assert plan["update"]["arguments"] == pytest.approx(held, rel=0.1)
  assert plan["update"]["sent"]["all-gather"][1] > 0


def test_a_missing_compiler_is_one_sentence(monkeypatch):
  import importlib.util

  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"needs its compiler, libtpu.*grpo_jax\[plan\]"):
    plan_mesh("fsdp:16", parse_topology("v5e:4x4"))


def test_compute_dtype_is_what_caches_are_held_in():
  assert jnp.dtype(CONFIG.dtype).itemsize == 2
  wide = dataclasses.replace(CONFIG, dtype="float32")
  assert sum(caches(job(config=wide))) == 2 * sum(caches(job()))
