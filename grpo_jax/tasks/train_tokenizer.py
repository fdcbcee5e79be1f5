"""Trains the embedded policy's byte-level BPE tokenizer.

The tokenizer reads text with Qwen's own pre-tokenizer pattern, so that `AutoTokenizer`, which puts
that pattern in place of the file's for `model_type: qwen2`, gives the same ids.

Its merges keep a word on the same sub-tokens wherever it stands: ` Nairobi` in a request,
`"Nairobi"` in a call, `_city` in a name and `city` in a question share their pieces, because a
leading space, quote or underscore never merges with the letters after it. What a small model has to
copy then looks the same at both ends. Only common function words get a token with their space.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.trainers import BpeTrainer

from grpo_jax.files.atomic import write_json

# Qwen 2.5's published pre-tokenizer pattern.
QWEN_PATTERN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED = ("<tool_call>", "</tool_call>")
SPACE = "Ġ"  # how byte-level BPE writes a space


def train_tokenizer(
  texts: Iterable[str], vocab_size: int, spaced_words: Sequence[str]
) -> Tokenizer:
  """Trains the tokenizer.

  Args:
    texts: the corpus.
    vocab_size: tokens in all, special ones included.
    spaced_words: lower-case function words that get one token together with their leading space.

  Returns:
    A `tokenizers.Tokenizer`.
  """
  learner = Tokenizer(models.BPE())
  learner.normalizer = normalizers.NFC()
  learner.pre_tokenizer = _pre_tokenizer(split_lead=True)
  reserved = len(SPECIAL) + len(ADDED) + len(spaced_words)
  learner.train_from_iterator(
    texts,
    BpeTrainer(
      vocab_size=vocab_size - reserved,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  learned = json.loads(learner.to_str())["model"]
  vocab: dict[str, int] = learned["vocab"]
  merges = [tuple(pair) for pair in learned["merges"]]
  for word in spaced_words:
    if word in vocab and SPACE + word not in vocab:  # only a word that is one token already
      merges.append((SPACE, word))
      vocab[SPACE + word] = len(vocab)

  tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = _pre_tokenizer(split_lead=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.post_processor = ByteLevelProcessor(trim_offsets=False)
  tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
  tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
  return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out_dir: Path, chat_template: str) -> None:
  """Writes `tokenizer.json` and `tokenizer_config.json` in the Hugging Face layout."""
  out_dir.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(out_dir / "tokenizer.json"))
  config = {
    "tokenizer_class": "Qwen2Tokenizer",
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "unk_token": None,
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 2048,
    "chat_template": chat_template,
  }
  write_json(out_dir / "tokenizer_config.json", config)


def _pre_tokenizer(*, split_lead: bool) -> pre_tokenizers.PreTokenizer:
  steps: list[pre_tokenizers.PreTokenizer] = [
    pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated")
  ]
  if split_lead:
    steps.append(pre_tokenizers.Split(Regex(r"^[^\p{L}\p{N}](?=\p{L})"), behavior="isolated"))
  steps.append(
    pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
  )
  return pre_tokenizers.Sequence(steps)
