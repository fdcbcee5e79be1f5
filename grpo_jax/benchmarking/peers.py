"""Other GRPO implementations on the same work, each in an environment and a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from grpo_jax.benchmarking.timing import LEARNING_RATE
from grpo_jax.benchmarking.work import ToolWork, Work
from grpo_jax.models import DecoderConfig, LoraConfig, save_pretrained
from grpo_jax.models.parameters import adapter_parameters

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

# Peers, and whose environment each runs in.
PEERS = {"trl": "trl", "tunix": "tunix", "torch": "trl"}
MARK = "BENCHMARK "  # as in experiments/peers/turns.py, which runs where this package is not


def prepare_environment(peer: str, requirements: Path, folder: Path) -> Path:
  """Makes a virtual environment for a peer, unless it is there with the same requirements.

  Args:
    peer: its name, for messages.
    requirements: a pip requirements file with exact versions.
    folder: the environment.

  Returns:
    The environment's interpreter.

  Raises:
    RuntimeError: pip could not install them; its own message stands above.
  """
  wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
  python, stamp = folder / "bin" / "python", folder / ".requirements"
  if stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
    return python
  print(f"installing {peer} into {folder}: some minutes the first time", flush=True)
  install = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)]
  try:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    subprocess.run(install, check=True)
  except subprocess.CalledProcessError as error:
    raise RuntimeError(f"the environment of {peer} could not be made: {error}") from error
  stamp.write_text(wanted, encoding="ascii")
  return python


def write_work(
  work: Work,
  steps: int,
  folder: Path,
  micro_batch_prompts: int = 1,
  lora: LoraConfig | None = None,
) -> Path:
  """Writes what a peer works on: a model in the Hugging Face layout and the prompts of each step.

  Args:
    work: of the same seed as that of our `TimedStep`, whose weights and prompts they are then.
    steps: how many steps' prompts.
    folder: where to.
    micro_batch_prompts: prompts in a backward pass, for peers that do not choose for themselves.
    lora: adapters to train instead of the whole model; Tunix's runner has none.

  Returns:
    The path of work.json.

  Raises:
    ValueError: a decoder that the peers' runners do not build.
  """
  config, load = work.config, work.load
  if config.model_type != "qwen2" or not config.tie_embeddings:
    raise ValueError("--compare needs a Qwen 2 shape with tied embeddings")
  if isinstance(work, ToolWork):
    model, wanted = work.model, [[task.answer for task in step] for step in work.tasks[:steps]]
    texts = [work.texts(step) for step in range(steps)]
  else:
    model, wanted = folder / "model", None
    save_pretrained(config, work.params(), model, tokenizer=_words(config.vocab_size))
    texts = [
      [" ".join(f"t{token}" for token in prompt) for prompt in work.prompts(step)]
      for step in range(steps)
    ]
  content = {
    "model": str(model.absolute()),
    "out": str((folder / "out").absolute()),
    "dtype": config.dtype,
    "prompts": load.prompts,
    "prompt_tokens": load.prompt_tokens,
    "group_size": load.group_size,
    "completion_tokens": load.completion_tokens,
    "stop_ids": list(work.stop_ids),
    "temperature": work.temperature,
    "learning_rate": LEARNING_RATE,
    "micro_batch_prompts": micro_batch_prompts,
    "lora": _peft_settings(work.config, lora) if lora else None,
    "steps": texts,
    "wanted": wanted,
  }
  path = (folder / "work.json").absolute()  # the peer runs in that folder
  path.write_text(json.dumps(content), encoding="utf-8")
  return path


def _peft_settings(config: DecoderConfig, lora: LoraConfig) -> dict[str, Any]:
  """Adapters as `peft.LoraConfig` takes them."""
  pairs = adapter_parameters(config, lora.rank, lora.targets)
  modules = sorted({a.name.split(".")[-3] for a, _ in pairs})
  return {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": modules}


def _words(vocab: int) -> PreTrainedTokenizerFast:
  """A tokenizer with a word `t<i>` for every token, so that a text has as many words as tokens."""
  # Half a second, and most benchmarks compare with nobody.
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"t{i}": i for i in range(3, vocab)}
  words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
  )


class PeerProcess:
  """A peer's program, which takes one step each time it is asked; a context manager.

  Args:
    command: interpreter and script.
    work: from `write_work`.

  Attributes:
    ready_seconds: what its start took, imports not included.
  """

  def __init__(self, command: Sequence[str], work: Path) -> None:
    self._log = (work.parent / "log.txt").open("w", encoding="utf-8")
    self._process = subprocess.Popen(
      [*command, str(work)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      text=True,
      # No telemetry, no way to a hub: the model is a folder.
      env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
      cwd=work.parent,
    )
    try:
      self.ready_seconds = self._answer()["ready"]
    except BaseException:
      self.close()
      raise

  def step(self) -> dict[str, float]:
    """Lets it take one step.

    Returns:
      `sample`, `update` and `total` seconds, `tokens` sampled, stop tokens among them, and
      `peak_memory_gib` so far.

    Raises:
      RuntimeError: it has ended; its last lines are in the message.
    """
    assert self._process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended: reading its answer says how
      self._process.stdin.write("step\n")
      self._process.stdin.flush()
    return self._answer()

  def _answer(self) -> dict[str, Any]:
    assert self._process.stdout is not None
    for line in self._process.stdout:
      if line.startswith(MARK):
        return json.loads(line.removeprefix(MARK))
      self._log.write(line)
    self._log.flush()
    status = self._process.wait()
    last = Path(self._log.name).read_text(encoding="utf-8").strip().splitlines()[-8:]
    raise RuntimeError("\n".join([f"the peer ended with exit status {status}:", *last]))

  def close(self) -> None:
    """Ends it; it has nothing to lose."""
    self._process.kill()
    self._process.wait()
    for stream in (self._process.stdin, self._process.stdout, self._log):
      if stream is not None:
        with contextlib.suppress(BrokenPipeError):  # what it was never told is still in the buffer
          stream.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()
