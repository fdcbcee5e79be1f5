"""What a training run is: its settings, checked against each other, and the record of them."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from grpo_jax import hub
from grpo_jax.grpo import GRPOConfig
from grpo_jax.installation import TINY_MODEL, git_commit
from grpo_jax.models import LoraConfig
from grpo_jax.optimizers import Decay, Optimizer
from grpo_jax.redaction import without_secrets
from grpo_jax.rewards import JudgeConfig, RewardConfig, RewardWeights, reward_files
from grpo_jax.sampling import SamplingConfig
from grpo_jax.sharding import parse_mesh
from grpo_jax.tracking import TRACKERS

Resume = Literal["auto", "never"]
Dtype = Literal["float32", "bfloat16"]

# Settings that may differ between the parts of one run: they do not change its numbers.
FREE = (
  "run_dir", "steps", "checkpoint_every", "keep_checkpoints", "resume", "allow_changes",
  "max_bad_steps", "track", "mesh", "profile", "save_merged",
)  # fmt: skip
SPLIT_NAME = re.compile(r"\w[\w.-]*")  # it becomes part of file names


@dataclass(frozen=True)
class RunConfig:
  """The settings of a run; every field but the nested ones is a flag of the same name.

  Attributes:
    run_dir: the run folder.
    model: a folder or hub id; the embedded policy by default.
    data: training tasks: a file, folder or hub id, or `synthetic:train`.
    eval_data: held-out tasks by name of the split.
    reward: what `rewards.load_reward` takes.
    reward_config: how it is run.
    grpo: the numbers of Algorithm 1, sampling among them.
    steps: GRPO steps.
    prompts_per_step: P, prompts a step; times the group size gives the completions.
    max_prompt_tokens: a longer prompt is an error.
    template_date: the day, as YYYY-MM-DD, that chat templates with a date show; empty takes that of
      the run's first day, which the record keeps.
    plain_user_text: special tokens that users and tools spell out are text, not tokens.
    lora_rank: rank of the adapters that are trained on the frozen model; 0 trains the whole model.
    lora_alpha: the adapters' product is scaled by this over the rank.
    lora_targets: the linear layers that have adapters, of q, k, v, o, gate, up and down.
    save_merged: of a LoRA run, also write model/, with the adapters merged into float32 kernels.
    optimizer: `adamw`, or `adafactor`, whose state is much smaller (see `make_optimizer`).
    learning_rate: the optimizer's, after the warm-up.
    warmup_steps: linear warm-up, in optimizer steps.
    decay: of the learning rate after that: `none`, or `linear` to the end of the run.
    weight_decay: decoupled, times the learning rate.
    clip_norm: gradients are scaled down to this global norm.
    seed: of the data order and the samples.
    data_seed: of the synthetic data.
    mesh: `data:1,fsdp:1,tensor:1`.
    dtype: compute dtype; master weights, log-probs and the loss are float32.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: how many of the newest are kept.
    eval_every: steps between evaluations during training; 0 evaluates before and after only.
    kl_every: steps between measurements of the KL to the start where the loss has no KL term; 0
      makes none and holds no reference. (A KL term measures it at every step.)
    eval_limit: at most this many tasks of each held-out split; 0 takes all.
    resume: `auto` continues a run folder that has a checkpoint; `never` refuses it.
    allow_changes: continue even where settings, data, model or reward differ from the run's own.
    max_bad_steps: after so many steps in a row without a finite update the run stops.
    track: trackers beside metrics.jsonl.
    profile: steps to trace, from the second one that this process takes; 0 traces none.
  """

  run_dir: str
  model: str = str(TINY_MODEL)
  data: str = "synthetic:train"
  eval_data: tuple[tuple[str, str], ...] = (
    ("seen", "synthetic:seen"),
    ("unseen", "synthetic:unseen"),
  )
  reward: str = "tiered"
  reward_config: RewardConfig = field(default_factory=RewardConfig)
  grpo: GRPOConfig = field(default_factory=GRPOConfig)
  steps: int = 100
  prompts_per_step: int = 8
  max_prompt_tokens: int = 1024
  template_date: str = ""
  plain_user_text: bool = False
  lora_rank: int = 0
  lora_alpha: float = 32.0
  lora_targets: str = "q,k,v,o,gate,up,down"
  save_merged: bool = False
  optimizer: Optimizer = "adamw"
  learning_rate: float = 1e-6
  warmup_steps: int = 5
  decay: Decay = "none"
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  seed: int = 0
  data_seed: int = 0
  mesh: str = "data:1,fsdp:1,tensor:1"
  dtype: Dtype = "float32"
  checkpoint_every: int = 50
  keep_checkpoints: int = 2
  eval_every: int = 0
  kl_every: int = 0
  eval_limit: int = 0
  resume: Resume = "auto"
  allow_changes: bool = False
  max_bad_steps: int = 3
  track: tuple[str, ...] = ()
  profile: int = 0

  def __post_init__(self) -> None:
    for name in (
      "steps", "prompts_per_step", "max_prompt_tokens", "checkpoint_every", "keep_checkpoints",
      "max_bad_steps",
    ):  # fmt: skip
      if getattr(self, name) < 1:
        raise ValueError(f"--{name}={getattr(self, name)} must be at least 1")
    if self.learning_rate <= 0 or self.clip_norm <= 0 or self.weight_decay < 0:
      raise ValueError(
        "--learning_rate and --clip_norm must be positive, --weight_decay not below 0"
      )
    for name in (
      "warmup_steps", "eval_every", "kl_every", "eval_limit", "seed", "data_seed", "lora_rank",
      "profile",
    ):  # fmt: skip
      if getattr(self, name) < 0:
        raise ValueError(f"--{name}={getattr(self, name)} must not be negative")
    for name in ("lora_alpha", "lora_targets", "save_merged"):
      if not self.lora and getattr(self, name) != getattr(RunConfig, name):
        raise ValueError(f"--{name}={getattr(self, name)} needs a --lora_rank above 0")
    if self.prompts_per_step % self.grpo.minibatches:
      raise ValueError(
        f"--minibatches={self.grpo.minibatches} does not divide "
        f"--prompts_per_step={self.prompts_per_step}"
      )
    minibatch = self.prompts_per_step // self.grpo.minibatches
    if self.grpo.micro_batch_prompts and minibatch % self.grpo.micro_batch_prompts:
      raise ValueError(
        f"--micro_batch_prompts={self.grpo.micro_batch_prompts} does not divide the {minibatch} "
        "prompts of an optimizer step (--prompts_per_step / --minibatches)"
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
    for name in self.track:
      if name not in TRACKERS:
        raise ValueError(f"--track={name}; expected one of {', '.join(TRACKERS)}")
    for name, value, valid in (
      ("dtype", self.dtype, get_args(Dtype)),
      ("resume", self.resume, get_args(Resume)),
      ("optimizer", self.optimizer, get_args(Optimizer)),
      ("decay", self.decay, get_args(Decay)),
    ):
      if value not in valid:
        raise ValueError(f"--{name}={value}; expected one of {', '.join(valid)}")

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
    group = self.grpo.sampling.group_size
    return (
      f"{self.steps} steps of {self.prompts_per_step} prompts x {group} candidates = "
      f"{self.prompts_per_step * group} completions of up to {self.grpo.sampling.max_tokens} tokens"
      f"; {self.grpo.inner_updates * self.grpo.minibatches} optimizer step(s) on each batch, "
      f"{micro} prompts ({micro * group} completions) in a backward pass"
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


def recorded_date(run_dir: str | Path) -> str:
  """The day that templates show in the run of a folder; empty where its record says none."""
  try:
    date = json.loads((Path(run_dir) / "config.json").read_text(encoding="utf-8"))["template_date"]
  except (OSError, ValueError, KeyError, TypeError):  # no run, or one that is refused elsewhere
    return ""
  return check_date(str(date)) if date else ""


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
    "reward_sha256": {
      str(path): hashlib.sha256(path.read_bytes()).hexdigest()
      for path in reward_files(config.reward)
    },
    "git_commit": git_commit(),
    "python": sys.version.split()[0],
    "packages": {name: importlib.metadata.version(name) for name in packages},
    "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
  }


def config_of(record: Mapping[str, Any]) -> RunConfig:
  """The settings that `run_record` wrote down; secrets are for the environment to give.

  Raises:
    ValueError: the record is not one of this version's.
  """
  names = {field.name for field in dataclasses.fields(RunConfig)}
  values = {name: value for name, value in record.items() if name in names}
  try:
    grpo, reward = dict(record["grpo"]), dict(record["reward_config"])
    sampling = {**grpo["sampling"], "stop_ids": tuple(grpo["sampling"]["stop_ids"])}
    grpo["sampling"] = SamplingConfig(**sampling)
    reward["weights"] = RewardWeights(**reward["weights"])
    reward["judge"] = JudgeConfig(**reward["judge"]) if reward["judge"] else None
    values |= {
      "grpo": GRPOConfig(**grpo),
      "reward_config": RewardConfig(**reward),
      "eval_data": tuple((name, source) for name, source in record["eval_data"]),
      "track": tuple(record["track"]),
    }
    return RunConfig(**values)
  except (KeyError, TypeError) as error:
    raise ValueError(f"config.json is not one of this version: {error}") from error


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """The settings that alter a run's future and differ between its record and a new one."""
  names = [f.name for f in dataclasses.fields(RunConfig) if f.name not in FREE]
  if new["decay"] != "none":  # the learning rate then depends on where the end is
    names.append("steps")
  names += ["data_sha256", "model_sha256", "reward_sha256"]
  old, new = without_secrets(old), json.loads(json.dumps(new))
  return [
    f"{name} ({json.dumps(old.get(name))} then, {json.dumps(new.get(name))} now)"
    for name in names
    if old.get(name) != new.get(name)
  ]


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
