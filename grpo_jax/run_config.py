"""What a training run is: its settings, checked against each other, and the record of them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from grpo_jax.grpo import GRPOConfig
from grpo_jax.rewards import RewardConfig
from grpo_jax.sharding import parse_mesh
from grpo_jax.tracking import TRACKERS

Resume = Literal["auto", "never"]
Dtype = Literal["float32", "bfloat16"]
TINY_MODEL = Path(__file__).parent / "assets" / "tiny"

# Settings that may differ between the parts of one run: they do not change its numbers.
FREE = (
  "run_dir",
  "steps",
  "checkpoint_every",
  "keep_checkpoints",
  "resume",
  "track",
  "mesh",
  "profile",
)


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
    learning_rate: AdamW's, after the warm-up.
    warmup_steps: linear warm-up, in steps.
    weight_decay: AdamW's.
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
  learning_rate: float = 1e-6
  warmup_steps: int = 5
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
  track: tuple[str, ...] = ()
  profile: int = 0

  def __post_init__(self) -> None:
    for name in ("steps", "prompts_per_step", "max_prompt_tokens", "checkpoint_every"):
      if getattr(self, name) < 1:
        raise ValueError(f"--{name}={getattr(self, name)} must be at least 1")
    if self.learning_rate <= 0 or self.clip_norm <= 0 or self.weight_decay < 0:
      raise ValueError(
        "--learning_rate and --clip_norm must be positive, --weight_decay not below 0"
      )
    for name in (
      "warmup_steps", "eval_every", "kl_every", "eval_limit", "seed", "data_seed", "profile",
    ):  # fmt: skip
      if getattr(self, name) < 0:
        raise ValueError(f"--{name}={getattr(self, name)} must not be negative")
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
    parse_mesh(self.mesh)
    for name in self.track:
      if name not in TRACKERS:
        raise ValueError(f"--track={name}; expected one of {', '.join(TRACKERS)}")
    for name, value, valid in (
      ("dtype", self.dtype, get_args(Dtype)),
      ("resume", self.resume, get_args(Resume)),
    ):
      if value not in valid:
        raise ValueError(f"--{name}={value}; expected one of {', '.join(valid)}")

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


def run_record(config: RunConfig, data_sha256: Mapping[str, str]) -> dict[str, Any]:
  """Everything that config.json says about a run."""
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
  settings = dataclasses.asdict(config)
  return {
    **{name: value for name, value in settings.items() if not isinstance(value, dict)},
    **{name: value for name, value in settings.items() if isinstance(value, dict)},
    "data_sha256": dict(data_sha256),
    "git_commit": git_commit(),
    "python": sys.version.split()[0],
    "packages": {name: importlib.metadata.version(name) for name in packages},
    "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
  }


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """The settings that alter a run's future and differ between its record and a new one."""
  names = [f.name for f in dataclasses.fields(RunConfig) if f.name not in FREE] + ["data_sha256"]
  new = json.loads(json.dumps(new))
  return [
    f"{name} ({json.dumps(old.get(name))} then, {json.dumps(new.get(name))} now)"
    for name in names
    if old.get(name) != new.get(name)
  ]


def git_commit() -> str:
  """The commit of the code, with `+` when there are changes, or the empty string outside git."""
  root = Path(__file__).parent
  git = lambda *arguments: subprocess.run(
    ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
  ).stdout.strip()
  try:
    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
  except (OSError, subprocess.CalledProcessError):
    return ""
