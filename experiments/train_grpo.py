"""Trains a tool-calling policy with GRPO and shows what it gained.

    python experiments/train_grpo.py --preset=tiny
    python experiments/train_grpo.py --model=Qwen/Qwen2.5-0.5B-Instruct --data=tasks.jsonl \\
      --eval_data=held_out=held_out.jsonl --run_dir=runs/mine
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from typing import Any, get_args

import jax
from absl import app, flags

from grpo_jax import hosts
from grpo_jax.grpo import GRPOConfig
from grpo_jax.models import Remat
from grpo_jax.redaction import redacted
from grpo_jax.report import gain_table
from grpo_jax.rewards import JudgeConfig, RewardConfig, RewardWeights
from grpo_jax.rewards.combine import NORMALISATIONS
from grpo_jax.rewards.judge import JUDGED
from grpo_jax.run_config import RunConfig
from grpo_jax.sampling import SamplingConfig
from grpo_jax.stop_signals import EXIT_STOPPED, Stopped
from grpo_jax.tables import as_text
from grpo_jax.training import TrainingFailed, train

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
D = RunConfig(run_dir="")

flags.DEFINE_string("model", D.model, "checkpoint folder or hub id; default: the embedded policy")
flags.DEFINE_string(
  "data",
  D.data,
  "training tasks: JSONL, JSON or parquet file, datasets folder or hub id, or synthetic:train",
)
flags.DEFINE_multi_string(
  "eval_data", [f"{n}={s}" for n, s in D.eval_data], "held-out tasks as NAME=FILE; repeatable"
)
flags.DEFINE_integer("data_seed", D.data_seed, "seed of the synthetic data")
flags.DEFINE_integer("eval_limit", D.eval_limit, "most tasks of each held-out split; 0: all")
flags.DEFINE_string(
  "reward",
  D.reward,
  "binary, tiered, graded, toolrl, judge or file.py:function, or a weighted list",
)
for weight in dataclasses.fields(RewardWeights):
  define: Any = {
    "float": flags.DEFINE_float, "int": flags.DEFINE_integer, "bool": flags.DEFINE_bool
  }  # fmt: skip
  define[weight.type](weight.name, weight.default, f"reward: {weight.metadata['help']}")
flags.DEFINE_enum("parse", "strict", ["strict", "auto"], "which forms count as a tool call")
flags.DEFINE_float("reward_on_error", 0.0, "reward of a completion on which a custom reward failed")
flags.DEFINE_float("reward_time_limit", 5.0, "seconds for one call of a custom reward")
flags.DEFINE_integer("reward_workers", 2, "processes for each custom reward")
flags.DEFINE_enum(
  "normalise", "none", NORMALISATIONS, "how each of several rewards is standardised before adding"
)
flags.DEFINE_string("judge_model", None, "model that judges, for the reward `judge`")
flags.DEFINE_string("judge_url", None, "OpenAI-compatible endpoint, such as http://host:8000/v1")
flags.DEFINE_string("judge_cache", None, "folder that keeps the judge's verdicts")
flags.DEFINE_enum("judged", "texts", JUDGED, "what is judged: texts without a call, or all answers")
flags.DEFINE_string("run_dir", "", "run folder; default: runs/<preset or grpo>-<time>")
flags.DEFINE_integer("steps", D.steps, "GRPO steps")
flags.DEFINE_integer("prompts_per_step", D.prompts_per_step, "prompts a step")
flags.DEFINE_integer("group_size", 8, "candidates sampled for each prompt (G)")
flags.DEFINE_integer(
  "micro_batch_prompts", 1, "prompts in one backward pass; 0: all of a minibatch"
)
flags.DEFINE_integer("minibatches", 1, "optimizer steps a pass over the batch")
flags.DEFINE_integer("inner_updates", 1, "passes over each batch of completions (mu)")
flags.DEFINE_integer("max_prompt_tokens", D.max_prompt_tokens, "longest prompt allowed, tokens")
flags.DEFINE_string(
  "template_date",
  D.template_date,
  "day that chat templates with a date show, YYYY-MM-DD; default: the run's first day",
)
flags.DEFINE_bool(
  "plain_user_text",
  D.plain_user_text,
  "special tokens spelled out in user and tool messages are text, not tokens",
)
flags.DEFINE_integer("max_completion_tokens", 64, "completions are cut here, tokens")
flags.DEFINE_float("temperature", 1.0, "logits are divided by it; 0: greedy")
flags.DEFINE_float("top_p", 1.0, "keep the likeliest tokens of this total probability; 1: all")
flags.DEFINE_integer("top_k", 0, "keep this many likeliest tokens; 0: all")
flags.DEFINE_float("min_p", 0.0, "keep tokens this likely relative to the likeliest; 0: all")
flags.DEFINE_integer(
  "lora_rank", D.lora_rank, "train adapters of this rank on the frozen model; 0: the whole model"
)
flags.DEFINE_float("lora_alpha", D.lora_alpha, "adapters are scaled by this / --lora_rank")
flags.DEFINE_string(
  "lora_targets", D.lora_targets, "linear layers with adapters: some of q,k,v,o,gate,up,down"
)
flags.DEFINE_bool(
  "save_merged", D.save_merged, "with --lora_rank: also write model/, adapters merged, float32"
)
flags.DEFINE_enum(
  "optimizer",
  D.optimizer,
  ["adamw", "adafactor"],
  "adamw, or adafactor: factored second moments and no first, a fraction of the memory",
)
flags.DEFINE_float("learning_rate", D.learning_rate, "the optimizer's, after the warm-up")
flags.DEFINE_integer("warmup_steps", D.warmup_steps, "linear warm-up, optimizer steps")
flags.DEFINE_enum(
  "decay", D.decay, ["none", "linear"], "of the learning rate, from the warm-up to the last step"
)
flags.DEFINE_float("weight_decay", D.weight_decay, "decoupled, times the learning rate")
flags.DEFINE_float("clip_norm", D.clip_norm, "gradients are scaled down to this global norm")
flags.DEFINE_float("kl_weight", 0.0, "weight of the k3 KL to the start (beta), reward per nat")
flags.DEFINE_float("clip_low", 0.2, "the ratio is clipped below 1 - this")
flags.DEFINE_float("clip_high", 0.2, "the ratio is clipped above 1 + this")
flags.DEFINE_enum("advantage", "std", ["std", "none"], "group advantages are divided by this")
flags.DEFINE_enum("aggregation", "sequence", ["sequence", "token"], "what the loss is a mean over")
flags.DEFINE_enum(
  "remat",
  "none",
  get_args(Remat),
  "what the backward pass computes again instead of keeping it: nothing, all of a layer but its "
  "products with weights, or all of it; less memory, more time",
)
flags.DEFINE_bool(
  "gather_weights", True, "sample with weights whole along fsdp: memory for sending them per token"
)
flags.DEFINE_integer("seed", D.seed, "of the data order and the samples")
flags.DEFINE_string("mesh", D.mesh, "devices by axis (data, fsdp, tensor); -1: the rest")
flags.DEFINE_enum(
  "dtype", D.dtype, ["float32", "bfloat16"], "compute dtype; master weights stay float32"
)
flags.DEFINE_integer("checkpoint_every", D.checkpoint_every, "steps between checkpoints")
flags.DEFINE_integer("keep_checkpoints", D.keep_checkpoints, "newest checkpoints that are kept")
flags.DEFINE_integer(
  "eval_every", D.eval_every, "steps between evaluations; 0: before and after only"
)
flags.DEFINE_integer(
  "kl_every", D.kl_every, "steps between measurements of the KL to the start without --kl_weight"
)
flags.DEFINE_enum(
  "resume", D.resume, ["auto", "never"], "continue a run folder that has checkpoints"
)
flags.DEFINE_bool(
  "allow_changes",
  D.allow_changes,
  "continue although settings, data, model or reward differ from the run's own",
)
flags.DEFINE_integer(
  "max_bad_steps", D.max_bad_steps, "stop after so many steps in a row without a finite update"
)
flags.DEFINE_string("coordinator", "", "host:port of process 0, if no cluster environment tells")
flags.DEFINE_integer("num_processes", 0, "processes (hosts) in all; 0: from the environment")
flags.DEFINE_integer("process_id", -1, "number of this process, from 0; -1: from the environment")
flags.DEFINE_integer(
  "profile", D.profile, "steps to trace with JAX's profiler into the run folder, from the second on"
)
flags.DEFINE_list("track", [], "also write to: tensorboard, mlflow")
flags.DEFINE_enum("preset", None, ["tiny"], "flag values for a known job; flags that are given win")

PRESETS = {
  # The embedded policy on two CPU cores, in under ten minutes.
  "tiny": {
    "steps": 80,
    "prompts_per_step": 12,
    "micro_batch_prompts": 3,
    "group_size": 8,
    "max_prompt_tokens": 448,
    "max_completion_tokens": 64,
    "learning_rate": 7e-5,
    "decay": "linear",
    # At temperature 1 a small policy's noise breaks long calls, and short wrong ones win.
    "temperature": 0.5,
    "aggregation": "token",
    "kl_every": 5,
    "checkpoint_every": 20,
  }
}


def run_config() -> RunConfig:
  """The flags as one checked configuration."""
  splits = []
  for entry in FLAGS.eval_data:
    name, _, source = entry.partition("=")
    if not source:
      raise ValueError(f"--eval_data={entry} must be NAME=FILE")
    splits.append((name, source))
  sampling = SamplingConfig(
    group_size=FLAGS.group_size,
    max_tokens=FLAGS.max_completion_tokens,
    **{name: FLAGS[name].value for name in ("temperature", "top_p", "top_k", "min_p")},
  )
  grpo = GRPOConfig(
    sampling=sampling,
    **{
      name: FLAGS[name].value
      for name in (
        "advantage", "aggregation", "clip_low", "clip_high", "kl_weight", "inner_updates",
        "minibatches", "micro_batch_prompts", "remat", "gather_weights",
      )
    },
  )  # fmt: skip
  judge = None
  if FLAGS.judge_model:
    judge = JudgeConfig(
      model=FLAGS.judge_model,
      base_url=FLAGS.judge_url,
      cache_dir=FLAGS.judge_cache,
      judged=FLAGS.judged,
    )
  reward_config = RewardConfig(
    parse=FLAGS.parse,
    weights=RewardWeights(
      **{weight.name: FLAGS[weight.name].value for weight in dataclasses.fields(RewardWeights)}
    ),
    group_size=FLAGS.group_size,
    on_error=FLAGS.reward_on_error,
    time_limit=FLAGS.reward_time_limit,
    workers=FLAGS.reward_workers,
    normalise=FLAGS.normalise,
    judge=judge,
  )
  stamp = time.strftime("%Y%m%d-%H%M%S")
  return RunConfig(
    run_dir=FLAGS.run_dir or f"runs/{FLAGS.preset or 'grpo'}-{stamp}",
    eval_data=tuple(splits),
    reward_config=reward_config,
    grpo=grpo,
    track=tuple(FLAGS.track),
    **{
      name: FLAGS[name].value
      for name in (
        "model", "data", "data_seed", "eval_limit", "reward", "steps", "prompts_per_step",
        "max_prompt_tokens", "template_date", "plain_user_text", "lora_rank", "lora_alpha",
        "lora_targets", "save_merged", "optimizer",
        "learning_rate", "warmup_steps", "decay", "weight_decay", "clip_norm", "seed",
        "mesh", "dtype", "checkpoint_every", "keep_checkpoints", "eval_every", "kl_every",
        "resume", "allow_changes", "max_bad_steps", "profile",
      )
    },
  )  # fmt: skip


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.getLogger("grpo_jax").setLevel(logging.INFO)
  for name, value in PRESETS.get(FLAGS.preset, {}).items():
    if not FLAGS[name].present:
      FLAGS[name].value = value
  try:
    config = run_config()
    hosts.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    if jax.process_count() > 1 and not FLAGS.run_dir:
      raise ValueError("several hosts need one --run_dir: its default holds the time of each")
    folder = train(config)
  except Stopped as stopped:
    print(f"train_grpo: {stopped}; run the same command again to go on", file=sys.stderr)
    sys.exit(EXIT_STOPPED)
  except Exception as error:
    if jax.process_count() > 1:
      logging.getLogger("grpo_jax").exception("this host ends")
      hosts.leave(error)
    if isinstance(error, ValueError | OSError | TrainingFailed):
      sys.exit(f"train_grpo: {redacted(str(error))}")
    raise
  if not hosts.is_first():
    return
  table = gain_table(folder)
  print(f"\n{table.title} ({config.reward} reward)\n{as_text(table.header, table.rows)}")
  print(f"\nrun folder: {folder}   page: {folder / 'report.html'}")


if __name__ == "__main__":
  app.run(main)
