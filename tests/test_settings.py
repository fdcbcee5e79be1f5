"""A setting is its field: it arrives wherever it must, and one that decides nothing is found."""

from __future__ import annotations

import ast
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from absl import flags

from grpo_jax import command_line
from grpo_jax.benchmarking.shapes import Workload
from grpo_jax.config import GRPOConfig, OptimizerConfig, RunConfig, SamplingConfig, run_record
from grpo_jax.losses import LOSSES
from grpo_jax.rewards import JudgeConfig, RewardConfig, RewardWeights
from grpo_jax.settings import (
  Settings,
  build,
  differences,
  from_record,
  setting,
  settings_of,
)
from grpo_jax.sft import SFTConfig

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "grpo_jax"
KINDS = (
  RunConfig, OptimizerConfig, GRPOConfig, SamplingConfig, RewardConfig, RewardWeights, JudgeConfig,
  SFTConfig, Workload,
)  # fmt: skip


@dataclass(frozen=True)
class WiderGRPO(GRPOConfig):
  warp: float = setting(0.5, "how far the ratio is bent", unit="nats", low=0, below=1)


@dataclass(frozen=True)
class Wider(RunConfig):
  grpo: WiderGRPO = field(default_factory=WiderGRPO)
  shields: int = setting(2, "layers of shields", above=1, name="shield_layers")


@pytest.fixture
def command(monkeypatch):
  """Reads the flags of a kind from arguments, apart from those of this process."""

  def parse(kind, *arguments, **defaults):
    monkeypatch.setattr(command_line, "FLAGS", flags.FlagValues())
    monkeypatch.setattr(command_line, "_defined", {})
    monkeypatch.setattr(command_line, "_axes", {})
    command_line.define(kind, **defaults)
    command_line.FLAGS(["script", *arguments])
    return command_line.FLAGS

  return parse


def test_a_new_field_is_a_flag_a_check_and_a_part_of_the_record(command):
  values = command(Wider, "--warp=0.25", "--shield_layers=3", "--seed=7")
  assert values["warp"].help == "how far the ratio is bent (nats; at least 0 and below 1)"
  assert (values["warp"].default, values["shield_layers"].default) == (0.5, 2)
  config = command_line.read(Wider, run_dir="x")
  assert (config.grpo.warp, config.shields, config.seed) == (0.25, 3, 7)

  record = json.loads(json.dumps(run_record(config, {})))
  assert record["grpo"]["warp"] == 0.25 and record["shields"] == 3
  assert from_record(Wider, record) == config
  # A record from before it was there means its default.
  del record["grpo"]["warp"], record["shields"]
  assert from_record(Wider, record) == dataclasses.replace(config, grpo=WiderGRPO(), shields=2)
  assert list(differences(Wider, record, run_record(config, {}))) == [
    ("warp", False, 0.5, 0.25),
    ("shield_layers", False, 2, 3),
  ]

  command(Wider, "--warp=1")
  with pytest.raises(ValueError, match=r"^--warp=1.0 must be at least 0 and below 1$"):
    command_line.read(Wider, run_dir="x")
  with pytest.raises(ValueError, match=r"^--shield_layers=1 must be above 1$"):
    Wider(run_dir="x", shields=1)


def another(one):
  """A text that a flag takes, and the value that it stands for: not the default."""
  texts = {"mesh": "fsdp:2", "template_date": "2023-12-24", "lora_targets": "q,v"}
  if one.type is tuple:
    return "x=y.jsonl", (("x", "y.jsonl"),)
  if one.choices:
    value = next((choice for choice in one.choices if choice != one.default), one.choices[0])
    return value, (value,) if one.many else value
  if one.type is str:
    return (texts.get(one.name, "something"),) * 2
  value = {bool: not one.default, int: one.default * 2 or 4, float: one.default / 2 or 0.5}[
    one.type
  ]
  return str(value).lower(), value


def test_every_flag_arrives_in_the_field_that_it_was_made_from(command):
  every = settings_of(RunConfig)
  del every["technique"]  # its other value, sft, refuses many of the others': tested below
  given = {name: another(one) for name, one in every.items()}
  command(RunConfig, *(f"--{name}={text}" for name, (text, _) in given.items()))
  config = command_line.read(RunConfig)
  for name, one in every.items():
    value = config
    for part in one.path:
      value = getattr(value, part)
    assert value == given[name][1], name
    assert value != one.default or len(one.choices) == 1, name
  assert config.reward_config.group_size == config.grpo.sampling.group_size == 16


@pytest.mark.parametrize(
  "text", ["temperature=0.5", "kl_weight=0.1", "clip_high=0.3", "kl_every=1", "normalise=batch"]
)
def test_what_is_about_samples_is_refused_where_there_are_none(command, text):
  command(RunConfig, "--technique=sft", "--group_size=1", "--minibatches=2", "--run_dir=x")
  config = command_line.read(RunConfig)
  assert config.technique == config.grpo.technique == "sft"
  assert "8 prompts x 1 demonstration = 8 completions" in config.plan()
  command(RunConfig, "--technique=sft", f"--{text}", "--run_dir=x")
  with pytest.raises(
    ValueError, match=rf"--{text.split('=')[0]}.* of which --technique=sft has none"
  ):
    command_line.read(RunConfig)


def test_the_defaults_of_the_flags_are_those_of_the_fields(command):
  command(RunConfig)
  config = command_line.read(RunConfig, run_dir="x")
  # G reaches the rewards too; a dataclass that is made by hand does not know of the other.
  assert config.reward_config == RewardConfig(group_size=8)
  assert dataclasses.replace(config, reward_config=RewardConfig()) == RunConfig(run_dir="x")
  assert config.reward_config.judge is None and config.grpo.micro_batch_prompts == 1


def test_a_script_may_have_defaults_of_its_own_and_only_some_flags(command):
  values = command(RunConfig, only=["seed"], temperature=0.0)
  assert set(values) == {"seed", "temperature"}
  sampling = command_line.read(SamplingConfig, group_size=1)
  assert sampling == SamplingConfig(group_size=1, temperature=0.0)
  command(RunConfig, "--seed=-1", only=["seed"])
  with pytest.raises(ValueError, match=r"^--seed=-1 must be at least 0$"):
    command_line.check()


def test_a_preset_sets_what_was_not_given_and_must_know_what_it_sets(command):
  command(RunConfig, "--steps=3")
  command_line.use({"steps": 9, "track": ["mlflow"], "clip_norm": 2}, "--preset=x")
  config = command_line.read(RunConfig, run_dir="x")
  assert (config.steps, config.track, config.clip_norm) == (3, ("mlflow",), 2)
  with pytest.raises(ValueError, match=r"^--preset=x: there is no setting stepz$"):
    command_line.use({"stepz": 9}, "--preset=x")
  command_line.use({"seed": "one"}, "--preset=x")
  with pytest.raises(ValueError, match=r"^--seed=one must be a whole number$"):
    command_line.read(RunConfig, run_dir="x")


def test_what_cannot_be_a_setting_is_refused():
  @dataclass(frozen=True)
  class Bare(Settings):
    steps: int = 3

  with pytest.raises(TypeError, match=r"Bare.steps is no setting"):
    Bare()

  @dataclass(frozen=True)
  class Twice(RunConfig):
    kl: float = setting(0.0, "again", name="kl_weight")

  with pytest.raises(TypeError, match="two fields of Twice have one flag"):
    settings_of(Twice)
  with pytest.raises(ValueError, match="there is no setting stepz"):
    build(RunConfig, {"run_dir": "x", "stepz": 1})


# What code calls the settings that it reads; in their own classes it is `self`.
HOLDERS = {
  "config", "_config", "settings", "sampling", "cfg", "grpo", "weights", "judge", "load",
}  # fmt: skip


def nodes_in(tree: ast.Module, kind: type, names: set[str]) -> set[ast.AST]:
  """All that is inside the functions or classes of these names."""
  homes = [node for node in ast.walk(tree) if isinstance(node, kind) and node.name in names]
  return {node for home in homes for node in ast.walk(home)}


def names_read() -> set[str]:
  """Names that the package reads off settings, or that a loss takes from those of its step."""
  found = set()
  for path in PACKAGE.rglob("*.py"):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    # To check a value, or to say it, is not to use it.
    checks = nodes_in(tree, ast.FunctionDef, {"__post_init__", "plan"})
    own = nodes_in(tree, ast.ClassDef, {kind.__name__ for kind in KINDS})
    for node in ast.walk(tree):
      if isinstance(node, ast.Attribute) and node not in checks:
        name = getattr(node.value, "attr", None) or getattr(node.value, "id", None)
        if name in HOLDERS or (name == "self" and node in own):
          found.add(node.attr)
  arguments = [loss.__kwdefaults__ or {} for loss in LOSSES.values()]
  return found.union(*arguments)


def unread(*kinds: type[Settings]) -> set[str]:
  """Fields of settings that nothing in the package reads."""
  read = names_read()
  return {entry.name for kind in kinds for entry in dataclasses.fields(kind)} - read


def test_every_setting_is_read_somewhere():
  assert unread(*KINDS) == set()
  assert unread(Wider, WiderGRPO) == {"warp", "shields"}
