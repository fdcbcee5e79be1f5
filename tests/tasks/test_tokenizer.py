"""Loading a tokenizer as its file describes it, stop tokens, and completions as text."""

from __future__ import annotations

import json

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from grpo_jax.tasks import completion_text, load_tokenizer, stop_token_ids

END, CALL = 257, 259


@pytest.fixture
def folder(tmp_path):
  """A byte-level tokenizer that cuts the last newline off a run, in a folder of a qwen2 model."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {letter: i for i, letter in enumerate(letters)}
  newline = "Ċ"
  tokenizer = Tokenizer(models.BPE(vocab | {newline * 2: 256}, [(newline, newline)]))
  # GPT-2's pattern, as SmolLM2 has it; Qwen's keeps a run of newlines whole.
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([AddedToken(t) for t in ("<|end|>", "<|pad|>", "<|call|>")])
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "config.json").write_text('{"model_type": "qwen2", "eos_token_id": 7}')
  options = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "tokenizer_class": "Qwen2Tokenizer"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
  return tmp_path


def test_the_tokenizer_is_the_file_and_not_what_the_model_type_suggests(folder):
  text = "a\n\nb"
  file = Tokenizer.from_file(str(folder / "tokenizer.json"))
  ids = load_tokenizer(folder)(text)["input_ids"]
  assert ids == file.encode(text).ids
  # The trap is real: AutoTokenizer puts Qwen's own pre-tokenizer in its place.
  assert ids != transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


def test_special_tokens_of_the_folder_are_kept(folder):
  tokenizer = load_tokenizer(folder)
  assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (END, END + 1)


def test_a_folder_without_a_tokenizer_says_so(folder):
  (folder / "tokenizer.json").unlink()
  with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
    load_tokenizer(folder)


def test_stop_tokens_are_the_generation_configs_then_the_tokenizers(folder):
  tokenizer = load_tokenizer(folder)
  assert stop_token_ids(tokenizer, {"eos_token_id": [9, 8]}) == (9, 8, END)
  assert stop_token_ids(tokenizer, {"eos_token_id": END}) == (END,)
  assert stop_token_ids(tokenizer, {}) == (END,)
  assert stop_token_ids(tokenizer, folder) == (7, END)  # config.json, where nothing else speaks
  (folder / "generation_config.json").write_text('{"eos_token_id": [9, 257]}')
  assert stop_token_ids(tokenizer, folder) == (9, END)


def test_a_policy_that_could_never_stop_is_refused(folder):
  tokenizer = load_tokenizer(folder)
  tokenizer.eos_token = None
  with pytest.raises(ValueError, match="end token"):
    stop_token_ids(tokenizer, {})


def test_a_completion_ends_at_its_first_stop_token_and_hides_nothing_before_it(folder):
  tokenizer = load_tokenizer(folder)
  a, b = tokenizer("ab")["input_ids"]
  assert completion_text(tokenizer, [a, CALL, b, END, a, END], (END,)) == "a<|call|>b"
  assert completion_text(tokenizer, [a, b], (END,)) == "ab"
  assert completion_text(tokenizer, [END, a], (END,)) == ""
  assert completion_text(tokenizer, [a, END, b, 7], (7,)) == "a<|end|>b"


def test_spaces_are_not_cleaned_up(folder):
  tokenizer = load_tokenizer(folder)
  text = '{ "a" : "it \'s , ok ." }'
  assert completion_text(tokenizer, tokenizer(text)["input_ids"], ()) == text
