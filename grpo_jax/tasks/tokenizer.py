"""A checkpoint's own tokenizer, its stop tokens, and completions as text."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_jax.files import hub

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
  """Loads the tokenizer of a checkpoint exactly as its `tokenizer.json` describes it.

  Args:
    path: a folder or a hub id, optionally `owner/name@revision`.

  Raises:
    FileNotFoundError: no such checkpoint, or it has no tokenizer.
  """
  from transformers import PreTrainedTokenizerFast

  folder = hub.checkpoint_folder(path, (*hub.CONFIG_FILES, *hub.TOKENIZER_FILES))
  if (folder / "tokenizer.json").is_file():
    # Not AutoTokenizer: for a `qwen2` config it silently puts Qwen's pre-tokenizer in place of the
    # one in tokenizer.json, which other checkpoints with that architecture do not use.
    return PreTrainedTokenizerFast.from_pretrained(folder)
  if not any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json")):
    raise FileNotFoundError(f"{folder} has no tokenizer.json: a policy needs its own tokenizer")
  from transformers import AutoTokenizer  # imports torch where there is one

  return AutoTokenizer.from_pretrained(folder)


def stop_token_ids(
  tokenizer: PreTrainedTokenizerBase, path_or_generation_config: str | Path | Mapping[str, Any]
) -> tuple[int, ...]:
  """The tokens that end a completion: the generation config's, then the tokenizer's own EOS.

  Args:
    tokenizer: of the same checkpoint.
    path_or_generation_config: a folder, a hub id, or the mapping in `generation_config.json`.

  Raises:
    ValueError: neither of them names a stop token, so that nothing would ever end.
  """
  config = path_or_generation_config
  if not isinstance(config, Mapping):
    folder = hub.checkpoint_folder(config, hub.CONFIG_FILES)
    files = [folder / name for name in ("generation_config.json", "config.json")]
    read = [json.loads(f.read_text(encoding="utf-8")) for f in files if f.is_file()]
    # config.json counts only where there is no generation config, as in transformers.
    config = read[0] if read else {}
  eos = config.get("eos_token_id")
  ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
  if tokenizer.eos_token_id is not None:
    ids.append(tokenizer.eos_token_id)
  if not ids:
    raise ValueError("neither generation_config.json nor the tokenizer names an end token")
  return tuple(dict.fromkeys(ids))


def completion_text(
  tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: Collection[int]
) -> str:
  """A completion as the text that rewards read: up to its first stop token, nothing left out.

  Other special tokens stay visible: some families mark tool calls with them, and a policy that
  writes them where they do not belong must not be scored as if it had not.
  """
  end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
  kept = list(ids[:end])
  return str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
