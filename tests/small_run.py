"""A run that takes seconds and still goes through everything: what several test files train."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import jax

import grpo_jax
from grpo_jax.config import RunConfig
from grpo_jax.grpo import GRPOConfig
from grpo_jax.models import DecoderConfig, init_params, is_matrix, save_pretrained
from grpo_jax.rewards import RewardConfig
from grpo_jax.runs.folder import whole_lines
from grpo_jax.runs.trackers import read_metrics
from grpo_jax.sampling import SamplingConfig
from grpo_jax.tasks.train_tokenizer import save_tokenizer, train_tokenizer

TEMPLATE = Path(grpo_jax.__file__).parent / "assets" / "tiny" / "chat_template.jinja"
CALL = '[{"name": "get_time", "arguments": {"city": "Rome"}}]'
# Long enough that all prompts are padded to one length: one program of each kind is compiled.
SYSTEM = "Be brief, please, as ever."
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


def small_run(folder: Path) -> RunConfig:
  """Makes a random checkpoint with a tokenizer of its own, data and a reward; as a RunConfig."""
  tokenizer = train_tokenizer([text for pair in REQUESTS for text in pair] * 3, 320, ())
  save_tokenizer(tokenizer, folder / "model", TEMPLATE.read_text(encoding="utf-8"))
  end, pad = (tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>"))
  shape = DecoderConfig(
    -(-tokenizer.get_vocab_size() // 8) * 8, 16, 24, 2, 2, 1, 8,
    tie_embeddings=True, eos_token_ids=(end, pad), pad_token_id=pad,
  )  # fmt: skip
  larger = lambda path, x: 5 * x if is_matrix(path) else x
  params = jax.tree_util.tree_map_with_path(larger, init_params(shape, jax.random.key(0)))
  save_pretrained(shape, params, folder / "model")
  tools = [{"type": "function", "function": {
    "name": "get_time", "description": "Time",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                   "required": ["city"]}}}]  # fmt: skip
  for name, requests in (("train", REQUESTS), ("held_out", REQUESTS[:3])):
    rows = [
      {
        "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
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


def steps_of(folder: Path) -> int:
  """How many steps a run's metrics hold."""
  return len(whole_lines(folder / "metrics.jsonl"))


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


def command(config: RunConfig, run_dir: Path, steps: int, *more: str) -> list[str]:
  """The command line that trains with the settings of `config`, and so the same programs."""
  flags = {
    "model": config.model, "data": config.data, "eval_data": "held_out=" + config.eval_data[0][1],
    "reward": config.reward, "group_size": 3, "max_completion_tokens": LIMIT, "steps": steps,
    "prompts_per_step": 2, "micro_batch_prompts": 1, "learning_rate": 0.01, "warmup_steps": 2,
    "inner_updates": 2, "kl_weight": 0.05, "checkpoint_every": 2, "eval_every": 3,
    "run_dir": str(run_dir),
  }  # fmt: skip
  script = Path(grpo_jax.__file__).parents[1] / "experiments" / "train_grpo.py"
  return [sys.executable, str(script), *(f"--{k}={v}" for k, v in flags.items()), *more]


def signal_defaults() -> None:
  """For `preexec_fn`: what a shell starts behind `&` ignores Ctrl-C, and so would its children."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)
