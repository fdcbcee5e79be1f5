"""Makes the embedded policy: a tokenizer and a small decoder, warmed up on made-up tools.

    pip install -e .[tiny]
    python experiments/make_tiny.py --out=runs/tiny

The corpus is procedural (`grpo_jax/tasks/synthetic/procedural.py`) over the word lists of
`wonderwords` (MIT), without any word of the evaluation tools. The run is restartable: it saves its
whole state every `--save_every` steps and goes on from there. Progress lies in OUT/metrics.jsonl.
"""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import serialization
from tokenizers import Tokenizer

from grpo_jax import command_line
from grpo_jax.models import DecoderConfig, load_pretrained, save_pretrained
from grpo_jax.models.induction_init import init_induction_params
from grpo_jax.sft import SFTBatch, SFTConfig, make_sft_step, sft_optimizer
from grpo_jax.tasks.synthetic.procedural import Words, demonstrations
from grpo_jax.tasks.synthetic.prompts import system_message
from grpo_jax.tasks.train_tokenizer import save_tokenizer, train_tokenizer

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
command_line.define(SFTConfig, steps=2100, learning_rate=1.5e-3, muon_learning_rate=0.008)
flags.DEFINE_string("out", "runs/tiny", "folder for the model and the state of the run")
flags.DEFINE_string(
  "init_from", "", "model folder to go on from, its tokenizer included; empty: start fresh"
)
flags.DEFINE_integer("seed", 0, "of the corpus and the initial weights")
flags.DEFINE_integer("prompts_per_step", 6, "sets of tools a step")
flags.DEFINE_integer("group_size", 8, "demonstrations per set of tools")
flags.DEFINE_float(
  "request_weight", 0.25, "loss weight of a request's tokens: they repeat the schema's words"
)
flags.DEFINE_integer("short_steps", 256, "first steps, which see short prompts and answers only")
flags.DEFINE_integer("vocab_size", 2048, "tokens in the tokenizer, special ones included")
flags.DEFINE_integer("hidden_size", 256, "model width")
flags.DEFINE_integer("intermediate_size", 512, "mlp width")
flags.DEFINE_integer("num_layers", 5, "decoder layers")
flags.DEFINE_integer("num_heads", 4, "query heads; half as many key/value heads")
flags.DEFINE_integer("save_every", 100, "steps between saved states")
flags.DEFINE_integer("stop_after", 0, "end after this step, the schedule unchanged; 0: at the end")
flags.DEFINE_string("chat_template", "", "jinja file; empty: the one beside the embedded policy")

PROMPT_BUCKETS = (128, 192, 256, 320, 384)
TURN_BUCKETS = (64, 80, 96, 128)
SHORT = (128, 64)  # limits of the first steps: where there is less to search, copying comes sooner
FUNCTION_WORDS = (
  "the a an to for with in of and me is are should i use can you please could would like need by "
  "from at on as it my that what which tell get up so plan want because into out set be will using "
  "your this none tools do help kindly hey also am looking provide some or than not"
).split()


def corpus_words() -> Words:
  """The word lists of `wonderwords`, without profanity and without the evaluation tools' words."""
  import wonderwords  # only this script needs it

  from grpo_jax.tasks.synthetic.tools import evaluation_words

  folder = Path(wonderwords.__file__).parent / "assets"
  banned = set((folder / "profanitylist.txt").read_text().split()) | set(evaluation_words())
  banned |= set(FUNCTION_WORDS)

  def read(name: str) -> list[str]:
    listed = set((folder / name).read_text().split())
    return sorted(w for w in listed - banned if re.fullmatch("[a-z]{3,9}", w))

  return Words(read("verblist.txt"), read("nounlist.txt"), read("adjectivelist.txt"))


def corpus_texts(words: Words, seed: int, sets: int) -> Iterator[str]:
  """The corpus as plain text, for the tokenizer."""
  for index in range(sets):
    tools, shown = demonstrations(words, seed, index, 8)
    yield system_message(tools)
    for demonstration in shown:
      yield demonstration.request
      yield demonstration.answer


def rows_of(words: Words, tokenizer, seed: int, index: int, group: int):
  """Two rows of the corpus over one set of tools: the shorter and the longer half of its turns.

  A row holds the prompt's ids and, for each turn, its ids and the position of its answer.
  """
  tools, shown = demonstrations(words, seed, index, 2 * group)
  ids = lambda text: tokenizer.encode(text).ids
  prompt = ids(f"<|im_start|>system\n{system_message(tools)}<|im_end|>\n")
  turns = []
  for demonstration in shown:
    asked = ids(f"<|im_start|>user\n{demonstration.request}<|im_end|>\n<|im_start|>assistant\n")
    turns.append((asked + ids(f"{demonstration.answer}<|im_end|>"), len(asked)))
  turns.sort(key=lambda turn: len(turn[0]))
  return [(prompt, turns[:group]), (prompt, turns[group:])]


def batches(words: Words, tokenizer, seed: int, first: int) -> Iterator[SFTBatch]:
  """Batches from number `first` on: a pure function of (seed, number).

  Sixteen batches' worth of rows are sorted by length, cut into batches and shuffled, so that few
  tokens are padding. Rows over the limits are drawn again.
  """
  prompts, group, block = FLAGS.prompts_per_step, FLAGS.group_size, 16
  for number in range(first // block, 10**9):
    short = number * block < FLAGS.short_steps
    longest_prompt, longest_turn = SHORT if short else (PROMPT_BUCKETS[-1], TURN_BUCKETS[-1])
    rows: list[tuple[list[int], list[tuple[list[int], int]]]] = []
    index = number * prompts * block * 16  # room for what is drawn again
    while len(rows) < prompts * block:
      rows += [
        row
        for row in rows_of(words, tokenizer, seed, index, group)
        if len(row[0]) <= longest_prompt and len(row[1][-1][0]) <= longest_turn
      ]
      index += 1
    rows = rows[: prompts * block]
    rows.sort(key=lambda row: (bucket(len(row[1][-1][0]), TURN_BUCKETS), len(row[0])))
    order = np.random.default_rng([seed, number]).permutation(block)
    for position, i in enumerate(order):
      if number * block + position >= first:
        yield to_batch(rows[i * prompts : (i + 1) * prompts])


def bucket(length: int, buckets: Sequence[int]) -> int:
  """The smallest bucket that holds `length`."""
  return next(b for b in buckets if b >= length)


def to_batch(rows) -> SFTBatch:
  """Pads rows to their buckets."""
  length = bucket(max(len(prompt) for prompt, _ in rows), PROMPT_BUCKETS)
  turn_length = bucket(max(len(turns[-1][0]) for _, turns in rows), TURN_BUCKETS)
  shape = (len(rows), len(rows[0][1]), turn_length)
  tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
  answers, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
  for p, (prompt, turns) in enumerate(rows):
    tokens[p, length - len(prompt) :], mask[p, length - len(prompt) :] = prompt, True
    for g, (turn, start) in enumerate(turns):
      answers[p, g, : len(turn)] = turn
      weights[p, g, :start] = FLAGS.request_weight
      weights[p, g, start : len(turn)] = 1.0
  return SFTBatch(tokens, mask, answers, weights)


def prefetched(iterator: Iterator[SFTBatch], depth: int = 8) -> Iterator[SFTBatch]:
  """Draws batches in a thread, ahead of the step."""
  ready: queue.Queue = queue.Queue(depth)

  def work():
    for item in iterator:
      ready.put(item)

  threading.Thread(target=work, daemon=True).start()
  while True:
    yield ready.get()


@command_line.script()
def main(argv: list[str]) -> None:
  cfg = command_line.read(SFTConfig)
  out = Path(FLAGS.out)
  out.mkdir(parents=True, exist_ok=True)
  words = corpus_words()
  if FLAGS.init_from:
    tokenizer = Tokenizer.from_file(str(Path(FLAGS.init_from) / "tokenizer.json"))
  else:
    tokenizer = train_tokenizer(
      corpus_texts(words, FLAGS.seed + 1, 1500), FLAGS.vocab_size, FUNCTION_WORDS
    )
  template = FLAGS.chat_template or "grpo_jax/assets/tiny/chat_template.jinja"
  save_tokenizer(tokenizer, out, Path(template).read_text(encoding="utf-8"))

  end, pad = tokenizer.encode("<|im_end|><|endoftext|>").ids
  policy = DecoderConfig(
    vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64,
    hidden_size=FLAGS.hidden_size,
    intermediate_size=FLAGS.intermediate_size,
    num_layers=FLAGS.num_layers,
    num_heads=FLAGS.num_heads,
    num_kv_heads=FLAGS.num_heads // 2,
    head_dim=FLAGS.hidden_size // FLAGS.num_heads,
    rope_theta=1e6,
    tie_embeddings=True,
    max_position_embeddings=2048,
    eos_token_ids=(end, pad),
    pad_token_id=pad,
  )
  tx = sft_optimizer(cfg)
  step = make_sft_step(policy, cfg, tx)
  if FLAGS.init_from:
    params = load_pretrained(FLAGS.init_from)[1]
  else:
    params = init_induction_params(policy, jax.random.key(FLAGS.seed))
  opt_state, first = tx.init(params), 0
  state = out / "state.msgpack"
  if state.exists():
    first, *saved = serialization.from_bytes((0, params, opt_state), state.read_bytes())
    params, opt_state = jax.tree.map(jnp.asarray, saved)
  print(f"{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.2f} M parameters, from step {first}")

  last = FLAGS.stop_after or FLAGS.steps
  started, seen = time.time(), 0
  stream = prefetched(batches(words, tokenizer, FLAGS.seed, first))
  for number in range(first, last):
    params, opt_state, metrics = step(params, opt_state, next(stream))
    seen += FLAGS.prompts_per_step * FLAGS.group_size
    if (number + 1) % 25 == 0:
      record = {"step": number + 1} | {k: round(float(v), 4) for k, v in metrics.items()}
      record["examples_per_second"] = round(seen / (time.time() - started), 1)
      print(json.dumps(record), flush=True)
      with open(out / "metrics.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")
    if (number + 1) % FLAGS.save_every == 0 or number + 1 == last:
      save_pretrained(policy, params, out)
      state.with_suffix(".new").write_bytes(serialization.to_bytes((number + 1, params, opt_state)))
      state.with_suffix(".new").rename(state)


if __name__ == "__main__":
  app.run(main)
