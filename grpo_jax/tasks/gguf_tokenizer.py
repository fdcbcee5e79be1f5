"""The tokenizer in a GGUF file's metadata, in the Hugging Face layout."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from grpo_jax.files.atomic import write_json, write_text
from grpo_jax.tasks.train_tokenizer import QWEN_PATTERN

# llama.cpp's kinds of tokens; what is unused fills the embedding up.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
  """Builds the byte-level BPE tokenizer that a GGUF file's vocabulary and merges describe.

  Args:
    metadata: by key, as `models.gguf_file.read_gguf` returns it.

  Raises:
    ValueError: a kind of tokenizer or token that is not read.
  """
  of: Callable[[str], Any] = lambda name: metadata.get(f"tokenizer.ggml.{name}")
  splits = {
    "smollm": lambda: [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
    "qwen2": lambda: [
      pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
  }
  if of("model") != "gpt2" or of("pre") not in splits:
    raise ValueError(
      f"a GGUF file with a tokenizer of {of('model')!r} and {of('pre')!r}; expected 'gpt2' and one "
      f"of {', '.join(splits)}"
    )
  words, kinds = of("tokens"), of("token_type")
  if odd := set(kinds) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}:
    raise ValueError(f"a GGUF file with tokens of the kind {', '.join(map(str, sorted(odd)))}")
  # Added tokens come after what was learned, as in Qwen's, or have places before it, as SmolLM2's.
  learned = len(kinds) - kinds[::-1].index(NORMAL)
  merges = [tuple(pair.split(" ")) for pair in of("merges")]
  tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words[:learned])}, merges))
  if of("pre") == "qwen2":
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits[of("pre")]())
  tokenizer.decoder = decoders.ByteLevel()
  for i, (word, kind) in enumerate(zip(words, kinds, strict=True)):
    if kind in (CONTROL, USER_DEFINED):
      add = tokenizer.add_special_tokens if kind == CONTROL else tokenizer.add_tokens
      add([AddedToken(word, normalized=False, special=kind == CONTROL)])
      if tokenizer.token_to_id(word) != i:
        raise ValueError(f"the GGUF file's token {i}, {word!r}, cannot have that number")
  return tokenizer


def write_gguf_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
  """Writes `tokenizer.json` and `tokenizer_config.json`, with the file's own chat template.

  Args:
    metadata: by key, as `models.gguf_file.read_gguf` returns it.
    folder: of the checkpoint.

  Raises:
    ValueError: a kind of tokenizer or token that is not read.
  """
  write_text(folder / "tokenizer.json", gguf_tokenizer(metadata).to_str(pretty=True) + "\n")
  words = metadata["tokenizer.ggml.tokens"]
  ids = {ours: metadata.get(f"tokenizer.ggml.{name}_token_id") for ours, name in _ROLES.items()}
  described = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    **{f"{ours}_token": words[i] for ours, i in ids.items() if i is not None},
    "clean_up_tokenization_spaces": False,
    "model_max_length": metadata[f"{metadata['general.architecture']}.context_length"],
    "chat_template": metadata["tokenizer.chat_template"],
  }
  write_json(folder / "tokenizer_config.json", described)
