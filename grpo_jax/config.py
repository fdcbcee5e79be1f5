"""All settings of a run, checked against each other, and the record of them.

A setting is a field here (those of rewards stand with them, which load without JAX). Its flag, its
check and its place in config.json follow from the field: see `settings`. To add one, write the
field and read it where it decides something.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax

from grpo_jax import __version__
from grpo_jax.files import hub
from grpo_jax.files.redaction import without_secrets
from grpo_jax.losses import LOSSES, AdvantageScale, Aggregation
from grpo_jax.models import LoraConfig, Remat, adapter_sha256
from grpo_jax.rewards import RewardConfig, reward_files
from grpo_jax.runs.installation import PRESETS, TINY_MODEL, git_commit, processor_and_cores
from grpo_jax.runs.trackers import TRACKERS
from grpo_jax.settings import REQUIRED, Settings, differences, from_record, setting
from grpo_jax.sharding import parse_mesh
from grpo_jax.tasks.demonstrations import CallFormat

Technique = Literal["grpo", "sft"]
Resume = Literal["auto", "never"]
Dtype = Literal["auto", "float32", "bfloat16"]
Optimizer = Literal["adamw", "adafactor"]
Decay = Literal["none", "linear"]

# What a step on demonstrations makes use of; everything else is about samples.
OF_SFT = frozenset((
  "technique", "group_size", "max_completion_tokens", "stop_ids", "pad_id", "aggregation",
  "inner_updates", "minibatches", "micro_batch_prompts", "remat", "gather_weights",
))  # fmt: skip
SPLIT_NAME = re.compile(r"\w[\w.-]*")  # it becomes part of file names


@dataclass(frozen=True)
class SamplingConfig(Settings):
  """How completions are drawn; static under jit."""

  group_size: int = setting(8, "candidates sampled for each prompt (G)", low=1)
  max_tokens: int = setting(
    64, "completions are cut here (T)", unit="tokens", low=1, name="max_completion_tokens"
  )
  temperature: float = setting(1.0, "logits are divided by it; 0: the likeliest token", low=0)
  top_k: int = setting(
    0, "keep this many likeliest tokens, of equally likely ones the lowest ids; 0: all", low=0
  )
  top_p: float = setting(
    1.0,
    "keep the fewest likeliest tokens that together reach this probability, of equally likely ones "
    "the lowest ids; 1: all",
    above=0,
    high=1,
  )
  min_p: float = setting(
    0.0, "keep tokens at least this likely relative to the likeliest; 0: all", low=0, below=1
  )
  stop_ids: tuple[int, ...] = setting(
    (), "tokens that end a completion (and belong to it); the model says them", flag=False
  )
  pad_id: int = setting(0, "what is written after the end; the model says it", flag=False)


@dataclass(frozen=True)
class GRPOConfig(Settings):
  """The numbers of Algorithm 1; static under jit."""

  sampling: SamplingConfig = field(default_factory=SamplingConfig)
  technique: Technique = setting(
    "grpo",
    "grpo: sample a group for each prompt and reinforce by reward; sft: raise the likelihood of "
    "the tasks' ground truths, one for each prompt",
  )
  dynamic_rounds: int = setting(
    0,
    "so many times, groups without spread are replaced by those of fresh prompts (dynamic sampling "
    "of DAPO); 0: never",
    low=0,
    high=16,
  )
  advantage: AdvantageScale = setting(
    "std", "what group advantages are divided by: their standard deviation (the paper), or nothing"
  )
  advantage_epsilon: float = setting(
    1e-4, "added to that standard deviation", unit="units of reward", low=0
  )
  loss: str = setting("grpo", "the per-token loss", choices=tuple(LOSSES))
  aggregation: Aggregation = setting(
    "sequence",
    "what the loss is a mean over: the tokens of each completion, then completions (the paper); "
    "all tokens; or, constant, all tokens that there could be",
  )
  clip_low: float = setting(0.2, "the ratio is clipped below 1 - this", above=0, below=1)
  clip_high: float = setting(0.2, "the ratio is clipped above 1 + this", above=0)
  kl_weight: float = setting(
    0.0,
    "weight of the k3 estimate of the KL to the start (beta); 0 needs no reference policy",
    unit="reward per nat",
    low=0,
  )
  inner_updates: int = setting(1, "passes over each batch of completions (mu)", low=1)
  minibatches: int = setting(
    1, "optimizer steps a pass over the batch, each on its share of the prompts", low=1
  )
  micro_batch_prompts: int = setting(
    1,
    "prompts in one backward pass, which the result does not depend on; 0: all of a minibatch",
    low=0,
  )
  remat: Remat = setting(
    "none",
    "what the backward pass computes again instead of keeping it: nothing, all of a layer but its "
    "products with weights, or all of it; less memory, more time",
  )
  # Exact, but it reorders the prompt axis, which is tested on one device only.
  skip_idle: bool = setting(
    False,
    "leave micro-batches out whose groups are all without spread; set where it is possible",
    flag=False,
  )
  gather_weights: bool = setting(
    True,
    "sample with the weights whole along fsdp, in the compute dtype: gathered once and held by "
    "each device meanwhile, instead of sent for every token",
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.technique == "sft":
      for name, _, _, value in differences(GRPOConfig, {}, dataclasses.asdict(self)):
        if name not in OF_SFT:
          raise ValueError(f"--{name}={value} is about samples, of which --technique=sft has none")
    elif self.sampling.group_size < 2:
      raise ValueError(
        f"--group_size={self.sampling.group_size} must be at least 2: a candidate is compared with "
        "its group"
      )
    if self.skip_idle and self.kl_weight:
      raise ValueError("skip_idle needs a kl_weight of 0: a KL term moves every group")


@dataclass(frozen=True)
class OptimizerConfig(Settings):
  """The optimizer and its numbers, for `optimizers.make_optimizer`."""

  optimizer: Optimizer = setting(
    "adamw",
    "adamw, or adafactor: factored second moments and no first, a fraction of the memory",
  )
  learning_rate: float = setting(1e-6, "the optimizer's, after the warm-up", above=0)
  warmup_steps: int = setting(5, "linear warm-up", unit="optimizer steps", low=0)
  decay: Decay = setting("none", "of the learning rate, from the warm-up to the last step")
  weight_decay: float = setting(0.0, "decoupled, times the learning rate", low=0)
  clip_norm: float = setting(1.0, "gradients are scaled down to this global norm", above=0)
  adam_b1: float = setting(0.9, "AdamW: decay of the first moment a step", low=0, below=1)
  adam_b2: float = setting(0.99, "AdamW: decay of the second moment a step", low=0, below=1)
  adam_epsilon: float = setting(
    1e-8, "AdamW: added to the root of the second moment", unit="units of the gradient", above=0
  )
  adafactor_decay_rate: float = setting(
    0.8, "Adafactor: the second moment decays by 1 - t^-this at step t", above=0
  )
  adafactor_epsilon: float = setting(
    1e-30, "Adafactor: added to the squared gradient", unit="units of its square", above=0
  )
  adafactor_min_dim_factored: int = setting(
    128, "Adafactor: matrices whose sides are both at least this are factored", low=1
  )
  adafactor_clip_rms: float = setting(
    1.0, "Adafactor: the update of a parameter is scaled down to this root mean square", above=0
  )


@dataclass(frozen=True, kw_only=True)
class RunConfig(OptimizerConfig):
  """The settings of a run."""

  run_dir: str = setting(
    REQUIRED, "run folder; default: runs/<preset or technique>-<time>", free=True
  )
  model: str = setting(str(TINY_MODEL), "checkpoint folder or hub id; default: the embedded policy")
  data: str = setting(
    "synthetic:train",
    "tasks: JSONL, JSON or parquet file, datasets folder or hub id, or synthetic:<split>, "
    "natural:<split>",
  )
  eval_data: tuple[tuple[str, str], ...] = setting(
    (("seen", "synthetic:seen"), ("unseen", "synthetic:unseen")),
    "held-out tasks as NAME=FILE, NAME that of the split; repeatable",
  )
  reward: str = setting(
    "tiered", "binary, tiered, graded, toolrl, judge or file.py:function, or a weighted list"
  )
  reward_config: RewardConfig = field(default_factory=RewardConfig)
  grpo: GRPOConfig = field(default_factory=GRPOConfig)
  steps: int = setting(100, "training steps", low=1, free=True)
  prompts_per_step: int = setting(
    8, "prompts a step (P); times the group size gives the completions", low=1
  )
  call_format: CallFormat = setting(
    "template",
    "how demonstrations write calls: as the model's chat template does, or as a JSON list, for "
    "models that were not trained on their template's call tokens (Qwen2.5-Coder)",
  )
  group_by_length: bool = setting(
    False, "steps of prompts of similar lengths, which pad less; another order of the data"
  )
  max_prompt_tokens: int = setting(1024, "a longer prompt is an error", unit="tokens", low=1)
  template_date: str = setting(
    "",
    "day that chat templates with a date show, YYYY-MM-DD; default: the run's first day, which "
    "its record keeps",
  )
  plain_user_text: bool = setting(
    False, "special tokens spelled out in user and tool messages are text, not tokens"
  )
  lora_rank: int = setting(
    0, "train adapters of this rank on the frozen model; 0: the whole model", low=0
  )
  lora_alpha: float = setting(
    32.0, "adapters are scaled by this / --lora_rank", above=0, needs="lora_rank"
  )
  lora_targets: str = setting(
    "q,k,v,o,gate,up,down",
    "linear layers with adapters: some of q,k,v,o,gate,up,down",
    needs="lora_rank",
  )
  init_adapter: str = setting(
    "",
    "adapters to start from, a folder in PEFT's format; rank, alpha and targets are its own, which "
    "flags that are given must equal",
  )
  save_merged: bool = setting(
    False, "also write model/, adapters merged, float32", needs="lora_rank", free=True
  )
  seed: int = setting(0, "of the data order, the samples and the bootstrap intervals", low=0)
  data_seed: int = setting(0, "of generated tasks", low=0)
  mesh: str = setting(
    "data:1,fsdp:1,tensor:1", "devices by axis (data, fsdp, tensor); -1: the rest", free=True
  )
  dtype: Dtype = setting(
    "auto",
    "compute dtype; master weights, log-probs and the loss are float32. auto: bfloat16 where it is "
    "fast and the model has 100 million parameters",
  )
  checkpoint_every: int = setting(50, "steps between checkpoints", low=1, free=True)
  keep_checkpoints: int = setting(2, "newest checkpoints that are kept", low=1, free=True)
  eval_every: int = setting(
    0, "steps between evaluations during training; 0: before and after only", low=0
  )
  kl_every: int = setting(
    0,
    "steps between measurements of the KL to the start where the loss has no KL term; 0 makes none "
    "and holds no reference",
    low=0,
  )
  evaluate_final: bool = setting(
    True, "evaluate after training; off where another run begins with that", free=True
  )
  eval_limit: int = setting(0, "most tasks of each held-out split; 0: all", low=0)
  resume: Resume = setting(
    "auto", "auto continues a run folder that has a checkpoint, never refuses it", free=True
  )
  allow_changes: bool = setting(
    False,
    "continue although settings, data, model or reward differ from the run's own",
    free=True,
  )
  max_bad_steps: int = setting(
    3, "stop after so many steps in a row without a finite update", low=1, free=True
  )
  track: tuple[str, ...] = setting(
    (), "also write to: tensorboard, mlflow", choices=TRACKERS, free=True
  )
  profile: int = setting(
    0,
    "steps to trace with JAX's profiler into the run folder, from the second on; 0: none",
    low=0,
    free=True,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    _ = self.lora  # it checks the targets
    if self.technique == "sft" and (self.kl_every or self.reward_config.normalise != "none"):
      raise ValueError(
        "--kl_every and --normalise are about samples, of which --technique=sft has none"
      )
    if self.grpo.dynamic_rounds and self.reward_config.normalise == "batch":
      raise ValueError("--dynamic_rounds does not go with --normalise=batch: the batch is not one")
    minibatches, micro = self.grpo.minibatches, self.grpo.micro_batch_prompts
    if self.prompts_per_step % minibatches:
      raise ValueError(
        f"--minibatches={minibatches} does not divide --prompts_per_step={self.prompts_per_step}"
      )
    minibatch = self.prompts_per_step // minibatches
    if micro and minibatch % micro:
      raise ValueError(
        f"--micro_batch_prompts={micro} does not divide the {minibatch} prompts of an optimizer "
        "step (--prompts_per_step / --minibatches)"
      )
    if self.template_date:
      check_date(self.template_date)
    parse_mesh(self.mesh)
    splits = [split for split, _ in self.eval_data]
    for split in splits:
      if split == "train":
        raise ValueError(
          "--eval_data: train is the name of the training data; call this split something else"
        )
      if splits.count(split) > 1:
        raise ValueError(f"--eval_data: two splits are called {split}; give each its own name")
      if not SPLIT_NAME.fullmatch(split):
        raise ValueError(
          f"--eval_data: {split!r} is no name of a split; use letters, digits, _, - and ."
        )

  @property
  def technique(self) -> Technique:
    """How the model is trained."""
    return self.grpo.technique

  @property
  def lora(self) -> LoraConfig | None:
    """What is adapted, or None where the whole model is trained."""
    if not self.lora_rank:
      return None
    return LoraConfig(self.lora_rank, self.lora_alpha, tuple(self.lora_targets.split(",")))

  def plan(self) -> str:
    """What a step does, in words: nobody should have to guess what a batch is."""
    minibatch = self.prompts_per_step // self.grpo.minibatches
    micro = self.grpo.micro_batch_prompts or minibatch
    sampled = self.technique == "grpo"
    group = self.grpo.sampling.group_size if sampled else 1
    return (
      f"{self.steps} steps of {self.prompts_per_step} prompts x {group} "
      f"{'candidates' if sampled else 'demonstration'} = "
      f"{self.prompts_per_step * group} completions of up to {self.grpo.sampling.max_tokens} tokens"
      f"; {self.grpo.inner_updates * self.grpo.minibatches} optimizer step(s) on each batch, "
      f"{micro} prompts ({micro * group} completions) in a backward pass; computed in {self.dtype}"
    )


def check_date(date: str) -> str:
  """Returns the value of `--template_date`, or raises where it is no day as YYYY-MM-DD."""
  try:
    right = datetime.date.fromisoformat(date).isoformat() == date
  except ValueError:
    right = False
  if not right:
    raise ValueError(f"--template_date={date} must be a day as YYYY-MM-DD")
  return date


def read_preset(preset: str) -> dict[str, Any]:
  """The settings of a known job, by the names of their flags.

  Args:
    preset: a file of `name = value` lines (TOML), or the name of one of ours.

  Raises:
    ValueError: there is no such file, or it cannot be read.
  """
  path = Path(preset) if preset.endswith(".toml") else PRESETS / f"{preset}.toml"
  if not path.is_file():
    ours = ", ".join(sorted(file.stem for file in PRESETS.glob("*.toml")))
    raise ValueError(f"--preset={preset} must be a file that ends in .toml, or one of {ours}")
  try:
    return tomllib.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"--preset={preset}: {error}") from error


def recorded(run_dir: str | Path, name: str) -> str:
  """What a run's record says of a setting; empty where there is no record, or it says nothing."""
  try:
    return str(json.loads((Path(run_dir) / "config.json").read_text(encoding="utf-8"))[name] or "")
  except (OSError, ValueError, KeyError, TypeError):  # no run, or one that is refused elsewhere
    return ""


def template_day(told: str, run_dir: str | Path) -> str:
  """The day that templates show: as told, else as the run began with it, else today."""
  day = check_date(told) if told else recorded(run_dir, "template_date")
  return day or datetime.date.today().isoformat()


def run_record(config: RunConfig, data_sha256: Mapping[str, str]) -> dict[str, Any]:
  """Everything that config.json says about a run; no keys, tokens and passwords.

  Args:
    config: its settings.
    data_sha256: of each split, by its name.
  """
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
  settings = without_secrets(dataclasses.asdict(config))
  return {
    **{name: value for name, value in settings.items() if not isinstance(value, dict)},
    **{name: value for name, value in settings.items() if isinstance(value, dict)},
    "data_sha256": dict(data_sha256),
    "model_sha256": model_sha256(config.model),
    "init_adapter_sha256": adapter_sha256(config.init_adapter) if config.init_adapter else None,
    "reward_sha256": {
      str(path): hashlib.sha256(path.read_bytes()).hexdigest()
      for path in reward_files(config.reward)
    },
    "version": __version__,
    "git_commit": git_commit(),
    "python": sys.version.split()[0],
    "packages": {name: importlib.metadata.version(name) for name in packages},
    "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    "processor": processor_and_cores(),
  }


def config_of(record: Mapping[str, Any]) -> RunConfig:
  """The settings that `run_record` wrote down, now or in an earlier version.

  Secrets are for the environment to give.

  Raises:
    ValueError: it is not the record of a run.
  """
  for group in ("grpo", "reward_config"):
    if not isinstance(record.get(group), Mapping):
      raise ValueError(f"config.json is not the record of a run: it has no {group!r}")
  try:
    return from_record(RunConfig, record)
  except ValueError as error:
    raise ValueError(f"config.json is not one that this version can read: {error}") from error


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """The settings that alter a run's future and differ between its record and a new one."""
  old, new = without_secrets(old), json.loads(json.dumps(new))
  found = [
    (name, then, now)
    for name, free, then, now in differences(RunConfig, old, new)
    # Where the learning rate falls, it depends on where the end is.
    if not free or (name == "steps" and new["decay"] != "none")
    # Version 0.1 wrote no day down: which one its templates showed is not known.
    if not (name == "template_date" and not then)
  ]
  found += [
    (name, old.get(name), new.get(name))
    for name in ("data_sha256", "model_sha256", "init_adapter_sha256", "reward_sha256")
    if old.get(name) != new.get(name)
  ]
  words = (f"{name} ({json.dumps(then)} then, {json.dumps(now)} now)" for name, then, now in found)
  return list(dict.fromkeys(words))


def model_sha256(model: str) -> str:
  """A SHA-256 over a checkpoint's config, tokenizer and weights.

  Of each weight file it takes the size and 64 evenly spaced blocks of 1 MiB: all of a small model,
  and a few seconds' worth of a large one.
  """
  digest = hashlib.sha256()
  patterns = (*hub.CONFIG_FILES, *hub.TOKENIZER_FILES, *hub.WEIGHT_FILES)
  folder = hub.checkpoint_folder(model, patterns)
  for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
    size = path.stat().st_size
    digest.update(f"{path.relative_to(folder)} {size}\n".encode())
    step = max(2**20, size // 64)
    with path.open("rb") as file:
      for start in range(0, size, step):
        file.seek(start)
        digest.update(file.read(2**20))
  return digest.hexdigest()
