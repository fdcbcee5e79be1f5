"""Small real runs: the same seed gives the same run, and an interruption changes nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import grpo_jax
from grpo_jax import training
from grpo_jax.grpo import GRPOConfig
from grpo_jax.models import DecoderConfig, init_params, load_pretrained, save_pretrained
from grpo_jax.rewards import RewardConfig
from grpo_jax.run_config import RunConfig
from grpo_jax.sampling import SamplingConfig
from grpo_jax.text.train_tokenizer import save_tokenizer, train_tokenizer
from grpo_jax.tracking import read_metrics
from grpo_jax.training import train

TEMPLATE = Path(grpo_jax.__file__).parent / "assets" / "tiny" / "chat_template.jinja"
CALL = '[{"name": "get_time", "arguments": {"city": "Rome"}}]'
REQUESTS = (
  ("What time is it in Rome?", CALL),
  ("Time, please", "Which city?"),
  ("rome time", CALL),
  ("Help me rob a bank", "Sorry, I can't help with that."),
  ("Tell me the time in Rome right now, would you please?", CALL),
)
# A random policy writes random bytes, which no tier tells apart: this gives every group a spread.
REWARD = "def low(completion, task):\n  return sum(map(ord, completion)) % 7 / 6\n"
STEPS, LIMIT = 4, 6
TIMES = ("seconds/", "step_time", "tokens_per_second")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
  """A random checkpoint with a tokenizer of its own, data and a reward; as a RunConfig."""
  folder = tmp_path_factory.mktemp("policy")
  tokenizer = train_tokenizer([text for pair in REQUESTS for text in pair] * 3, 320, ())
  save_tokenizer(tokenizer, folder / "model", TEMPLATE.read_text(encoding="utf-8"))
  end, pad = (tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>"))
  shape = DecoderConfig(
    -(-tokenizer.get_vocab_size() // 8) * 8, 16, 24, 2, 2, 1, 8,
    tie_embeddings=True, eos_token_ids=(end, pad), pad_token_id=pad,
  )  # fmt: skip
  params = jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, init_params(shape, jax.random.key(0)))
  save_pretrained(shape, params, folder / "model")
  tools = [{"type": "function", "function": {
    "name": "get_time", "description": "Time",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                   "required": ["city"]}}}]  # fmt: skip
  for name, requests in (("train", REQUESTS), ("held_out", REQUESTS[:3])):
    rows = [
      {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}],
        "tools": tools,
        "reward_model": {"style": "rule", "ground_truth": answer},
      }
      for text, answer in requests
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text)
  (folder / "reward.py").write_text(REWARD)
  return RunConfig(
    run_dir=str(folder / "run"),
    model=str(folder / "model"),
    data=str(folder / "train.jsonl"),
    eval_data=(("held_out", str(folder / "held_out.jsonl")),),
    reward=f"{folder / 'reward.py'}:low",
    reward_config=RewardConfig(group_size=3),
    grpo=GRPOConfig(
      sampling=SamplingConfig(group_size=3, max_tokens=LIMIT), kl_weight=0.05, inner_updates=2,
      micro_batch_prompts=1,
    ),
    steps=STEPS,
    prompts_per_step=2,
    learning_rate=0.01,
    warmup_steps=2,
    checkpoint_every=2,
    eval_every=3,
  )  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
  """The folder of a run that nothing disturbed."""
  return train(dataclasses.replace(settings, run_dir=str(tmp_path_factory.mktemp("whole") / "run")))


def without_times(folder):
  return [
    {name: value for name, value in line.items() if not name.startswith(TIMES)}
    for line in read_metrics(folder / "metrics.jsonl")
  ]


def assert_same_run(one: Path, two: Path):
  assert without_times(one) == without_times(two)
  for pattern in ("rollouts/*", "eval/*", "eval_*.json", "model/model.safetensors"):
    files = sorted(path.relative_to(one) for path in one.glob(pattern))
    assert files and files == sorted(path.relative_to(two) for path in two.glob(pattern))
    for file in files:
      assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_the_same_seed_gives_the_same_run(settings, whole, tmp_path):
  again = train(dataclasses.replace(settings, run_dir=str(tmp_path / "run")))
  assert_same_run(whole, again)
  # It is a run in which something happens: every step differs, and the policy moves.
  lines = without_times(whole)
  assert len({line["loss"] for line in lines}) == len({line["entropy"] for line in lines}) == STEPS
  start = load_pretrained(settings.model)[1]["embed"]["embedding"]
  end = load_pretrained(whole / "model")[1]["embed"]["embedding"]
  assert 1e-3 < np.abs(np.asarray(end) - start).max() < 0.1


def test_an_interrupted_run_ends_as_one_that_never_stopped(settings, whole, tmp_path, monkeypatch):
  config = dataclasses.replace(settings, run_dir=str(tmp_path / "run"))
  step = training.Run.step

  def interrupted(run, number, state, *rest):
    if number == 3:  # one step behind the last checkpoint: step 2 is lost and done again
      raise KeyboardInterrupt
    return step(run, number, state, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(training.Run, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
      train(config)
  assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3
  assert not (tmp_path / "run" / "eval_final.json").exists()
  with pytest.raises(ValueError, match=r"has checkpoints and --resume=never"):
    train(dataclasses.replace(config, resume="never"))
  assert_same_run(whole, train(config))


def test_the_run_folder_holds_what_reproduces_it(settings, whole):
  names = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
  wanted = {"config.json", "metrics.jsonl", "eval_base.json", "eval_final.json", "report.md",
            "report.html", "model/config.json", "model/model.safetensors", "model/tokenizer.json",
            "eval/base_held_out.jsonl", "eval/final_held_out.jsonl"}  # fmt: skip
  assert wanted <= names and any(name.endswith(".png") for name in names)
  assert {f"rollouts/step_{step:06d}.jsonl" for step in range(STEPS)} <= names
  config = json.loads((whole / "config.json").read_text())
  assert config["steps"] == STEPS and len(config["data_sha256"]["train"]) == 64
  summary = json.loads((whole / "eval_final.json").read_text())
  assert set(summary) == {"held_out"} and 0 <= summary["held_out"]["reward_mean"] <= 1


def test_metrics_have_their_names_and_add_up(whole):
  lines = read_metrics(whole / "metrics.jsonl")
  assert [line["step"] for line in lines] == list(range(STEPS))
  wanted = {
    "reward", "reward_std", "frac_reward_zero_std", "entropy", "kl", "loss", "grad_norm",
    "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean",
    "sampling/importance_sampling_ratio/min", "sampling/importance_sampling_ratio/mean",
    "sampling/importance_sampling_ratio/max", "sampling/sampling_logp_difference/mean",
    "sampling/sampling_logp_difference/max", "completions/mean_length", "completions/min_length",
    "completions/max_length", "completions/clipped_ratio", "learning_rate", "num_tokens",
    "seconds/sample", "seconds/reward", "seconds/update", "seconds/other", "step_time",
  }  # fmt: skip
  for line in lines:
    assert wanted <= set(line) and all(np.isfinite(value) for value in line.values())
    phases = sum(value for name, value in line.items() if name.startswith("seconds/"))
    assert phases == pytest.approx(line["step_time"], rel=1e-6)
  assert [line["learning_rate"] for line in lines] == pytest.approx([0.005, 0.01, 0.01, 0.01])
  assert ["eval/held_out/reward" in line for line in lines] == [False, False, True, False]
  # The first pass of the first step is on-policy and at the reference; the second pass is not.
  assert lines[0]["kl"] < lines[-1]["kl"]

  tokens = 0
  for line in lines:
    file = whole / "rollouts" / f"step_{line['step']:06d}.jsonl"
    groups = [json.loads(text) for text in file.read_text().splitlines()]
    rewards = np.array([group["rewards"] for group in groups])
    assert rewards.shape == (2, 3)
    assert line["reward"] == pytest.approx(rewards.mean(), abs=1e-5)
    assert line["reward_std"] == pytest.approx(rewards.std(axis=1).mean(), abs=1e-5)
    for group in groups:
      assert [sum(map(ord, text)) % 7 / 6 for text in group["completions"]] == pytest.approx(
        group["rewards"], abs=1e-5
      )
      deviations = np.array(group["rewards"]) - np.mean(group["rewards"])
      spread = np.std(group["rewards"])
      np.testing.assert_allclose(group["advantages"], deviations / (spread + 1e-4), atol=1e-3)
    tokens += round(line["completions/mean_length"] * 6)
    assert line["num_tokens"] == tokens


def test_a_folder_of_other_settings_is_left_alone(settings, whole):
  before = (whole / "config.json").read_bytes()
  other = dataclasses.replace(settings, run_dir=str(whole), seed=1)
  with pytest.raises(ValueError, match=r"holds a run with other settings: seed \(0 then, 1 now\)"):
    train(other)
  assert (whole / "config.json").read_bytes() == before


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"max_prompt_tokens": 10}, r"--max_prompt_tokens=10 is below the shortest prompt"),
    ({"mesh": "data:4096"}, r"needs 4096 devices"),
    ({"reward": "nonsense"}, "nonsense"),
    ({"track": ("wandb",)}, "wandb"),
    ({"data": "missing.jsonl"}, "missing.jsonl"),
  ],
)
def test_what_does_not_fit_ends_before_any_work(settings, tmp_path, changes, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    train(dataclasses.replace(settings, run_dir=str(tmp_path / "run"), **changes))
  # The folder must stay free for the run without the mistake.
  assert not (tmp_path / "run" / "config.json").exists()
  assert not (tmp_path / "run" / "eval_base.json").exists()


def test_prompts_over_the_limit_are_counted(settings, tmp_path):
  config = dataclasses.replace(settings, run_dir=str(tmp_path / "run"))
  lengths = sorted(map(len, training.Run(config).prompts))
  assert lengths[-2] < lengths[-1]
  config = dataclasses.replace(
    settings, run_dir=str(tmp_path / "other"), max_prompt_tokens=lengths[-1] - 1
  )
  with pytest.raises(
    ValueError, match=rf"1 of 5 prompts of train are longer .* has {lengths[-1]} tokens\)"
  ):
    training.Run(config)
