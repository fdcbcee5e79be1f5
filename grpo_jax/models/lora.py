"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on the decoder's linear layers.

An adapted layer computes `x W + b + (alpha / r) (x A) B` with W and b frozen. Adapters are a tree
of their own, `{"layers": {target: {"lora_a": [N, in, r], "lora_b": [N, r, out]}}}`: it is all that
is trained, and all that an optimizer or a checkpoint sees. `attach` lays it over the frozen base,
which is shared, not copied; the decoder adds the low-rank term wherever it finds one. The base
alone is the policy before training, which is what the KL term's reference is.

On disk they have PEFT's format, which `peft` and vLLM load (https://huggingface.co/docs/peft).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.files import hub
from grpo_jax.models.checkpoint import read_json
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.parameters import (
  Params,
  adapter_parameters,
  checkpoint_tensors,
  linear_layers,
)
from grpo_jax.models.tensor_file import DTYPES, TensorFile, write_tensors
from grpo_jax.models.weights import ADAPTER, host_array, merged_kernel

TARGETS = linear_layers(DecoderConfig(1, 2, 1, 1, 1, 1, 2))  # the same in every decoder
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# What would make a PEFT adapter more than W + (alpha / r) A B.
_EXTRAS = (
  *("modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias"),
  *("trainable_token_indices", "layer_replication", "target_parameters", "loftq_config"),
)


@dataclass(frozen=True)
class LoraConfig:
  """What is adapted, and how strongly.

  Attributes:
    rank: r, the inner width of every adapter; positive.
    alpha: the adapters' product is scaled by alpha / r; positive.
    targets: the linear layers that have one, of `TARGETS`.
  """

  rank: int
  alpha: float = 32.0
  targets: tuple[str, ...] = TARGETS

  def __post_init__(self) -> None:
    if self.rank < 1 or self.alpha <= 0:
      raise ValueError(
        f"lora_rank={self.rank} and lora_alpha={self.alpha:g}; expected both to be positive"
      )
    if not self.targets or set(self.targets) - set(TARGETS):
      raise ValueError(
        f"lora_targets={','.join(self.targets)}; expected some of {','.join(TARGETS)}"
      )


def init_adapters(config: DecoderConfig, lora: LoraConfig, key: jax.Array) -> Params:
  """Draws A and sets B to zero, so that the adapted policy starts as the base.

  A is uniform in +-1/sqrt(in), as `loralib` and PEFT draw it; the paper says Gaussian, without a
  width.

  Args:
    config: of the decoder.
    lora: rank and targets.
    key: typed.

  Returns:
    The adapter tree, float32.
  """
  pairs = adapter_parameters(config, lora.rank, lora.targets)
  adapters: Params = {}
  for i, (a, b) in enumerate(pairs):
    bound = a.shape[0] ** -0.5
    draw = lambda place, a=a, bound=bound: jax.random.uniform(
      jax.random.fold_in(key, place), a.shape, minval=-bound, maxval=bound
    )
    adapters[a.path[1]] = {
      # Places are counted layer by layer.
      "lora_a": jax.vmap(draw)(i + len(pairs) * jnp.arange(a.layers)),
      "lora_b": jnp.zeros(b.stacked_shape, jnp.float32),
    }
  return {"layers": adapters}


def attach(base: Params, adapters: Params, lora: LoraConfig) -> Params:
  """Lays adapters over a frozen base: parameters that the decoder takes like any others.

  No leaf of the base is copied. B is scaled by alpha / r here, so the decoder needs no number.
  """
  scale = lora.alpha / lora.rank
  layers = dict(base["layers"])
  for target, pair in adapters["layers"].items():
    layers[target] = layers[target] | {"lora_a": pair["lora_a"], "lora_b": scale * pair["lora_b"]}
  return base | {"layers": layers}


def with_adapters(trained: Params, base: Params | None, lora: LoraConfig | None) -> Params:
  """The decoder's parameters: what is trained, or the frozen base with its adapters laid over."""
  return attach(base, trained, lora) if lora and base is not None else trained


def merge(params: Params) -> Params:
  """Folds attached adapters into their kernels, W + A B in float32; other leaves stay as they are.

  All kernels at once, beside the base; `save_pretrained` merges one at a time. Training and
  sampling keep the two apart: in bfloat16 a change below half a unit in the last place of W would
  be rounded away, and the sampler would draw from the base.
  """
  if "lora_a" not in params:
    return {name: merge(x) if isinstance(x, dict) else x for name, x in params.items()}
  a, b = (params[name] for name in ADAPTER)
  rest = {name: x for name, x in params.items() if name not in ADAPTER}
  return rest | {"kernel": merged_kernel(params["kernel"], a, b)}


def save_adapters(
  config: DecoderConfig, adapters: Params, lora: LoraConfig, out_dir: str | Path, base_model: str
) -> None:
  """Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT does.

  On several hosts every process must call it; the first one writes.

  Args:
    config: of the decoder.
    adapters: the tree of `init_adapters`, in any sharding.
    lora: rank, alpha and targets.
    out_dir: the folder, made if missing.
    base_model: folder or hub id of the base, as `--model` takes it.
  """
  pairs = adapter_parameters(config, lora.rank, lora.targets)
  entries = {t.name: t for t in checkpoint_tensors([half for pair in pairs for half in pair])}
  leaf = lambda path: adapters["layers"][path[1]][path[2]]
  specs = {
    name: (t.parameter.stored_shape, np.dtype(leaf(t.parameter.path).dtype))
    for name, t in entries.items()
  }
  tensors = {
    name: host_array(leaf(t.parameter.path), t, specs[name][1]) for name, t in entries.items()
  }
  if jax.process_index():
    return
  folder = Path(out_dir)
  folder.mkdir(parents=True, exist_ok=True)
  write_tensors(folder / WEIGHTS_FILE, specs, tensors.items())
  name, revision = hub.name_and_revision(base_model)
  modules = {a.path[1]: a.name.split(".")[-3] for a, _ in pairs}
  described = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": name,
    "revision": revision,
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "lora_dropout": 0.0,
    "target_modules": [modules[target] for target in lora.targets],
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load_adapters(folder: str | Path, config: DecoderConfig) -> tuple[Params, LoraConfig]:
  """Reads adapters in PEFT's format, of our runs or of others.

  Args:
    folder: holds `adapter_config.json` and `adapter_model.safetensors`.
    config: of the base that they belong to.

  Returns:
    The adapter tree, float32, and its rank, alpha and targets: what `attach` takes.

  Raises:
    FileNotFoundError: one of the two files is missing.
    ValueError: a variant of LoRA that the decoder does not have, or tensors that do not fit it.
  """
  folder = Path(folder).expanduser()
  for name in (CONFIG_FILE, WEIGHTS_FILE):
    if not (folder / name).is_file():
      raise FileNotFoundError(f"{folder} has no {name}: it holds no adapter in PEFT's format")
  said = read_json(folder / CONFIG_FILE)
  odd = [name for name in said if (name in _EXTRAS or name.startswith("use_")) and said[name]]
  if said.get("peft_type") != "LORA" or said.get("bias", "none") != "none" or odd:
    what = ", ".join(odd) or f"{said.get('peft_type')} with bias={said.get('bias')}"
    raise ValueError(f"{folder}: {what} is not supported; expected plain LoRA without biases")
  file = TensorFile(folder / WEIGHTS_FILE)
  pairs = adapter_parameters(config, said["r"], TARGETS)
  tensors = {t.name: t for t in checkpoint_tensors([half for pair in pairs for half in pair])}
  # Not every layer needs to have an adapter: the tensors say which do. One of zeros adds nothing.
  at = lambda name: (tensors[name].parameter.path[1], tensors[name].layer)
  adapted = {at(name) for name in tensors if name in file.shapes}
  wanted = {name: tensor for name, tensor in tensors.items() if at(name) in adapted}
  faults = [f"unexpected {name}" for name in sorted(file.shapes.keys() - wanted.keys())]
  for name, tensor in wanted.items():
    shape = tensor.parameter.stored_shape
    if file.shapes.get(name) != shape or file.dtypes[name] not in DTYPES:
      faults.append(f"{name} has shape {file.shapes.get(name)}, expected {shape}")
  if faults or not wanted:
    raise ValueError(f"{folder} does not fit the base: {'; '.join(faults) or 'no tensors'}")
  targets = tuple(target for target in TARGETS if any(target == one for one, _ in adapted))
  adapters: Params = {}
  for half in (half for pair in pairs for half in pair if half.path[1] in targets):
    value = np.zeros(half.stacked_shape, np.float32)
    for layer, name in enumerate(half.names):
      if name in wanted:
        value[layer] = file.rows(name, 0, half.stored_shape[0]).T
    adapters.setdefault(half.path[1], {})[half.path[2]] = jax.device_put(value)
  return {"layers": adapters}, LoraConfig(said["r"], said["lora_alpha"], targets)


def adapter_sha256(folder: str | Path) -> str:
  """A SHA-256 over the two files of adapters in PEFT's format."""
  digest = hashlib.sha256()
  for name in (CONFIG_FILE, WEIGHTS_FILE):
    digest.update((Path(folder).expanduser() / name).read_bytes())
  return digest.hexdigest()
