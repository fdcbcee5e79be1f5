"""The embedded policy's tokenizer: Qwen's pattern, and words that look alike everywhere."""

from __future__ import annotations

import json

import pytest
import transformers

from grpo_jax.tasks import load_tokenizer, stop_token_ids
from grpo_jax.tasks.train_tokenizer import ADDED, SPECIAL, save_tokenizer, train_tokenizer

CORPUS = [
  'A table in Nairobi for 12: [{"name": "book_table", "arguments": {"city": "Nairobi"}}]',
  "What is the city? Nairobi is the city, not the table.",
] * 5
SIZE = 340
SPACED = ("the", "is", "unheard")


@pytest.fixture(scope="module")
def trained():
  return train_tokenizer(CORPUS, SIZE, SPACED)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
  out = tmp_path_factory.mktemp("tokenizer") / "new"
  save_tokenizer(trained, out, "{% for m in messages %}{{ m.content }}{% endfor %}")
  (out / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
  return out


def test_a_word_has_the_same_pieces_wherever_it_stands(trained):
  ids = lambda text: trained.encode(text).ids
  for word in ("Nairobi", "table", "city"):
    pieces = ids(word)
    assert 1 <= len(pieces) < len(word)  # something was learned
    for lead in (" ", '"', "_", "("):  # not "'", which Qwen's pattern reads as a contraction
      assert ids(lead + word)[-len(pieces) :] == pieces, lead
    assert ids(f'{{"{word}": "{word}"}}').count(pieces[0]) == 2


def test_function_words_alone_get_a_token_with_their_space(trained):
  assert len(trained.encode(" the").ids) == len(trained.encode(" is").ids) == 1
  assert len(trained.encode(" table").ids) > 1
  # A word that never became one token does not get one with a space either.
  assert "Ġunheard" not in trained.get_vocab()


def test_the_vocabulary_holds_every_byte_and_the_special_tokens_last(trained):
  vocab = trained.get_vocab()
  assert len(vocab) == trained.get_vocab_size() <= SIZE
  assert sorted(vocab.values()) == list(range(len(vocab)))
  last = [vocab[token] for token in (*SPECIAL, *ADDED)]
  assert last == list(range(len(vocab) - 5, len(vocab)))


@pytest.mark.parametrize(
  "text",
  [
    "",
    "  two  spaces\n\n\tand a tab ",
    "Zürich → 東京 🙂",
    "it's 'quoted' \"text\"",
    "a\r\n\r\nb",
    "1234",
  ],
)
def test_any_text_survives(trained, text):
  assert trained.decode(trained.encode(text).ids) == text


def test_transformers_reads_the_same_tokens_either_way(folder):
  ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
  for text in (
    *CORPUS[:2],
    "it's a\n\nb",
    " the  table",
    "Zürich 12",
    "<|im_start|>user\nhi<|im_end|>",
  ):
    ids = ours(text)["input_ids"]
    assert ids == theirs(text)["input_ids"], text
    assert ours.decode(ids) == text


def test_special_tokens_and_template_are_saved(folder, trained):
  tokenizer = load_tokenizer(folder)
  end, pad = trained.token_to_id("<|im_end|>"), trained.token_to_id("<|endoftext|>")
  assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (end, pad)
  assert stop_token_ids(tokenizer, {}) == (end,)
  chat = [{"role": "user", "content": "hi"}]
  assert tokenizer.apply_chat_template(chat, tokenize=False) == "hi"
  # Tool-call marks are ordinary text: a decoded answer must show them.
  ids = tokenizer("<tool_call>x</tool_call><|im_end|>")["input_ids"]
  assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>x</tool_call>"
