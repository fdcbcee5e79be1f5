"""Tokenizers of GGUF files: the same ids as those that the files were made of."""

from __future__ import annotations

import json

import pytest
from made_up_gguf import tokenizer_metadata
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from grpo_jax.runs.installation import TINY_MODEL
from grpo_jax.tasks import load_tokenizer
from grpo_jax.tasks.gguf_tokenizer import gguf_tokenizer, write_gguf_tokenizer

TEXTS = [
  "Hello, how are you?",
  "  two leading spaces,\n\n\nthree newlines \t and a tab\r\n",
  "I'll pay $1,234.50 on 2024-02-29 — it's ABC123's.",
  "naïve café; e\u0301 decomposed; 東京の天気; 🙂",
  '<|im_start|>user\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>',
]


@pytest.fixture
def metadata():
  """What a GGUF file of the embedded policy says; 12 rows of its embedding have no token."""
  about = {"general.architecture": "qwen2", "qwen2.context_length": 2048}
  ids = {"tokenizer.ggml.eos_token_id": 2036, "tokenizer.ggml.padding_token_id": 2034}
  return tokenizer_metadata(TINY_MODEL) | about | ids


def test_qwens_kind_is_the_file_it_was_made_of(metadata, tmp_path):
  write_gguf_tokenizer(metadata, tmp_path)
  found, wanted = (
    json.loads((folder / "tokenizer.json").read_text()) for folder in (tmp_path, TINY_MODEL)
  )
  # The one processes offsets only, the other says so once more.
  for options in (
    wanted["pre_tokenizer"]["pretokenizers"][-1],
    found["pre_tokenizer"]["pretokenizers"][-1],
  ):
    options.pop("trim_offsets")
  differing = [name for name in wanted if found.get(name) != wanted[name]]
  assert differing == ["post_processor"]
  ours, theirs = load_tokenizer(tmp_path), load_tokenizer(TINY_MODEL)
  for text in TEXTS:
    ids = ours(text)["input_ids"]
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)
  assert len(ours) == len(theirs)
  assert (ours.eos_token, ours.pad_token) == ("<|im_end|>", "<|endoftext|>")
  assert ours.chat_template == theirs.chat_template
  assert ours.model_max_length == 2048


def test_smollms_kind_keeps_special_tokens_first_and_digits_apart():
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  words = ["<|endoftext|>", "<|im_end|>", *letters, "12", "Ġa", "ĊĊ"]
  merges = [("1", "2"), ("Ġ", "a"), ("Ċ", "Ċ")]
  wanted = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
  wanted.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
  )
  wanted.decoder = decoders.ByteLevel()
  wanted.add_special_tokens([AddedToken(word, normalized=False) for word in words[:2]])
  found = gguf_tokenizer(
    {
      "tokenizer.ggml.model": "gpt2",
      "tokenizer.ggml.pre": "smollm",
      "tokenizer.ggml.tokens": words,
      "tokenizer.ggml.token_type": [3, 3] + [1] * (len(words) - 2),
      "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
    }
  )
  assert json.loads(found.to_str()) == json.loads(wanted.to_str())
  ids = found.encode("a a12\n\n<|im_end|>").ids
  assert ids[-1] == 1 and words.index("12") not in ids and words.index("Ġa") in ids


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tokenizer.ggml.model": "llama"}, "a tokenizer of 'llama' and 'qwen2'"),
    ({"tokenizer.ggml.pre": "gemma4"}, "a tokenizer of 'gpt2' and 'gemma4'"),
    ({"tokenizer.ggml.token_type": [6] * 2048}, "tokens of the kind 6"),
  ],
)
def test_other_kinds_are_refused(metadata, change, message):
  with pytest.raises(ValueError, match=message):
    gguf_tokenizer(metadata | change)


def test_an_added_token_keeps_its_number_or_is_refused(metadata):
  words = list(metadata["tokenizer.ggml.tokens"])
  words[2035], words[2036] = words[2036], "<|im_end|>"  # twice
  with pytest.raises(ValueError, match=r"token 2036, '<\|im_end\|>', cannot have that number"):
    gguf_tokenizer(metadata | {"tokenizer.ggml.tokens": words})
