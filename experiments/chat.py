"""Talks to a policy in the terminal: tokens as they come, then its calls and their validity.

python experiments/chat.py --model=runs/my_run/model --tools=tools.json

A LoRA run leaves `adapter/`: `--model` is then its base, and `--adapter` that folder.

`--tools` is a JSON list of tool schemas. One message a line; /reset starts over, /quit or the end
of the input leaves.
"""

import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
from absl import app, flags
from referencing import Registry

from grpo_jax import command_line, models
from grpo_jax.config import RunConfig, SamplingConfig
from grpo_jax.rewards import PARSE_ERRORS, parse
from grpo_jax.rewards.parsing.parser import ParseMode
from grpo_jax.sampling import SampleProgram, draw, pad_to_bucket
from grpo_jax.tasks import encode_messages, load_tokenizer, stop_token_ids
from grpo_jax.tasks.jsonl import read_tools
from grpo_jax.tasks.schema import ToolCall, ToolSpec
from grpo_jax.tasks.synthetic.prompts import STYLES, system_message

FLAGS: Any = flags.FLAGS  # flags have their types at run time only
command_line.define(RunConfig, ["model", "parse", "seed", "dtype"], plain_user_text=True)
command_line.define(
  SamplingConfig, without=["group_size"], max_completion_tokens=256, temperature=0.0
)
flags.DEFINE_alias("max_tokens", "max_completion_tokens")
flags.DEFINE_string("adapter", None, "folder of LoRA adapters (PEFT's format) for this model")
flags.DEFINE_string("tools", None, "JSON file with a list of tool schemas; none by default")
flags.DEFINE_enum(
  "style", "system", STYLES, "tools in the system message, or in the template's way"
)
flags.DEFINE_string("system", None, "system message; with tools, the training prompt's by default")


prefill = jax.jit(models.prefill, static_argnums=0)
decode_step = jax.jit(models.decode_step, static_argnums=0, donate_argnums=4)


@functools.partial(jax.jit, static_argnums=(0, 5))
def draw_token(config, params, hidden, key, step, sampling):
  """The token [1, 1] that follows a hidden state [1, 1, D], as `sample_groups` draws it."""
  uniform = jax.random.uniform(jax.random.fold_in(key, step), (1, 1))
  return draw(models.logits_of(config, params, hidden), uniform, sampling)[0]


def stream(
  config: models.DecoderConfig,
  params: models.Params,
  prompt: Sequence[int],
  key: jax.Array,
  sampling: SamplingConfig,
) -> Iterator[int]:
  """Yields the tokens of one completion as they are drawn, a stop token included."""
  prompts = pad_to_bucket([prompt], sampling.pad_id)
  cache, hidden = prefill(config, params, prompts.tokens, prompts.mask)
  hidden = hidden[:, None]
  # Copies, because the empty cache is one buffer under many names, which cannot be donated twice.
  own = jax.tree.map(jnp.copy, models.empty_completion_cache(config, 1, 1, sampling.max_tokens))
  weights = SampleProgram(config, None, sampling).weights(params, None)  # not for each token
  for step in map(np.int32, range(sampling.max_tokens)):
    token = draw_token(config, weights, hidden, key, step, sampling)
    yield token.item()
    if token.item() in sampling.stop_ids:
      return
    hidden, own = decode_step(config, weights, token, cache, own, step)


def text_pieces(tokenizer: Any, tokens: Iterator[int], stop_ids: Sequence[int]) -> Iterator[str]:
  """Yields the text that each token adds; half a character waits for its other half."""
  decode = functools.partial(
    tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False
  )
  seen: list[int] = []
  shown = ""
  for token in itertools.takewhile(lambda token: token not in stop_ids, tokens):
    seen.append(token)
    text = decode(seen)
    if not text.endswith("\N{REPLACEMENT CHARACTER}"):
      yield text[len(shown) :]
      shown = text
  yield decode(seen)[len(shown) :]


def validity(call: ToolCall, tools: Sequence[ToolSpec]) -> str:
  """Whether a call fits its tool's schema, and what is wrong where it does not."""
  spec = next((tool for tool in tools if tool.name == call.name), None)
  if spec is None:
    return f"invalid: there is no tool {call.name!r}"
  # An empty registry: jsonschema's own would fetch what a schema refers to.
  validator = jsonschema.Draft202012Validator(dict(spec.parameters), registry=Registry())
  try:
    faults = [error.message for error in validator.iter_errors(dict(call.arguments))]
  except Exception as error:  # by what it refers to: nothing, itself, or what is no schema
    reason = str(error).partition(" within {")[0]
    return f"not checked: the schema of {call.name} cannot be used: {reason}"
  unknown = [name for name in call.arguments if spec.properties and name not in spec.properties]
  faults += [f"{name!r} is not an argument of {call.name}" for name in unknown]
  return f"invalid: {'; '.join(faults)}" if faults else "valid"


def verdict(answer: str, tools: Sequence[ToolSpec], mode: ParseMode) -> list[str]:
  """The calls in an answer, one line each with its validity, or why there are none."""
  parsed = parse(answer, mode)
  if parsed.error:
    return [f"not a valid call: {PARSE_ERRORS[parsed.error]}"] if parsed.attempted else []
  lines = []
  for call in parsed.calls:
    pairs = call.arguments.items()
    arguments = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in pairs)
    lines.append(f"{call.name}({', '.join(arguments)})  {validity(call, tools)}")
  return lines


def opening(tools: Sequence[ToolSpec]) -> list[dict[str, str]]:
  """The messages that every conversation starts with."""
  texts = [] if FLAGS.system is None else [FLAGS.system]
  if tools and (FLAGS.system is None or FLAGS.style == "system"):
    texts.append(system_message(tools, FLAGS.style))
  return [{"role": "system", "content": "\n".join(texts)}] if texts else []


def converse(path: str, tools: Sequence[ToolSpec]) -> None:
  """Reads messages and answers them until the input ends."""
  config, params = models.load_pretrained(path, dtype=FLAGS.dtype)
  if FLAGS.adapter:
    params = models.attach(params, *models.load_adapters(FLAGS.adapter, config))
  print(f"computed in {config.dtype}", file=sys.stderr)  # the conversation alone is the output
  tokenizer = load_tokenizer(path)
  sampling = dataclasses.replace(
    command_line.read(SamplingConfig, group_size=1),
    stop_ids=stop_token_ids(tokenizer, path),
    pad_id=config.pad_token_id or 0,
  )
  shown_natively = tools if FLAGS.style == "tools" else ()
  messages = opening(tools)
  turn = 0
  while (line := ask()) not in (None, "/quit"):
    if line == "/reset":
      messages = opening(tools)
      continue
    if not line:
      continue
    messages.append({"role": "user", "content": line})
    plain = FLAGS.plain_user_text
    prompt = encode_messages(tokenizer, messages, shown_natively, plain_user_text=plain)
    key = jax.random.fold_in(jax.random.key(FLAGS.seed), turn)
    answer = ""
    tokens = stream(config, params, prompt, key, sampling)
    for piece in text_pieces(tokenizer, tokens, sampling.stop_ids):
      print(piece, end="", flush=True)
      answer += piece
    print()
    for found in verdict(answer, tools, FLAGS.parse):
      print(f"  -> {found}")
    messages.append({"role": "assistant", "content": answer})
    turn += 1


def ask() -> str | None:
  """One message from the terminal, or None at its end."""
  try:
    return input("> " if sys.stdin.isatty() else "").strip()
  except (EOFError, KeyboardInterrupt):
    return None


@command_line.script()
def main(argv: list[str]) -> None:
  """Starts the conversation."""
  command_line.check()
  converse(FLAGS.model, read_tools(FLAGS.tools) if FLAGS.tools else [])


if __name__ == "__main__":
  app.run(main)
