"""Talks to a policy in the terminal: tokens as they come, then its calls and their validity.

python experiments/chat.py --model=runs/my_run/model --tools=tools.json

A LoRA run leaves `adapter/`: `--model` is then its base, and `--adapter` that folder.

`--tools` is a JSON list of tool schemas. One message a line; /reset starts over, /quit or the end
of the input leaves.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
from absl import app, flags
from referencing import Registry

from grpo_jax import command_line
from grpo_jax.config import RunConfig, SamplingConfig
from grpo_jax.files.json_text import read_json
from grpo_jax.models import (
  DecoderConfig,
  Params,
  attach,
  decode_step,
  empty_completion_cache,
  in_compute_dtype,
  layers_apart,
  load_adapters,
  load_pretrained,
  logits_of,
  prefill,
)
from grpo_jax.rewards import PARSE_ERRORS, parse
from grpo_jax.rewards.parsing.parser import ParseMode
from grpo_jax.sampling import LENGTH_BUCKETS, draw
from grpo_jax.tasks import encode_messages, load_tokenizer, stop_token_ids
from grpo_jax.tasks.batches import bucket_length, pad_prompts
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


@functools.partial(jax.jit, static_argnums=(0, 5))
def first_token(policy, params, tokens, mask, key, cfg):
  """Encodes the prompt and draws the first token; returns it with the prompt's cache."""
  cache, hidden = prefill(policy, params, tokens, mask)
  logits = logits_of(policy, params, hidden)[:, None]
  uniform = jax.random.uniform(jax.random.fold_in(key, 0), (1, 1))
  return draw(logits, uniform, cfg)[0], cache


@functools.partial(jax.jit, static_argnums=(0, 7), donate_argnums=(4,))
def next_token(policy, params, token, cache, own, step, key, cfg):
  """Feeds the token at `step` and draws the one after it."""
  hidden, own = decode_step(policy, params, token, cache, own, step)
  uniform = jax.random.uniform(jax.random.fold_in(key, step + 1), (1, 1))
  return draw(logits_of(policy, params, hidden), uniform, cfg)[0], own


def stream(
  policy: DecoderConfig, params: Params, prompt: Sequence[int], key: jax.Array, cfg: SamplingConfig
) -> Iterator[int]:
  """Yields the tokens of one completion as they are drawn, a stop token included."""
  length = bucket_length(len(prompt), LENGTH_BUCKETS)
  tokens, mask = pad_prompts([prompt], length, cfg.pad_id)
  token, cache = first_token(policy, params, tokens, mask, key, cfg)
  # Copies, because the empty cache is one buffer under many names, which cannot be donated twice.
  own = jax.tree.map(jnp.copy, empty_completion_cache(policy, 1, 1, cfg.max_tokens))
  apart = params | {"layers": layers_apart(policy, params)}
  weights = in_compute_dtype(policy, apart)  # once, not for each token
  for step in range(cfg.max_tokens):
    yield int(token[0, 0])
    if int(token[0, 0]) in cfg.stop_ids:
      return
    token, own = next_token(policy, weights, token, cache, own, np.int32(step), key, cfg)


def text_pieces(tokenizer: Any, tokens: Iterator[int], stop_ids: Sequence[int]) -> Iterator[str]:
  """Yields the text that each token adds; half a character waits for its other half."""
  seen: list[int] = []
  shown = ""
  for token in tokens:
    if token in stop_ids:
      break
    seen.append(token)
    text = tokenizer.decode(seen, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not text.endswith("\N{REPLACEMENT CHARACTER}"):
      yield text[len(shown) :]
      shown = text
  if seen:
    text = tokenizer.decode(seen, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    yield text[len(shown) :]


def faults_of(call: ToolCall, tools: Sequence[ToolSpec]) -> list[str]:
  """What is wrong with a call by its tool's schema; empty when it is valid.

  Raises:
    ValueError: the schema refers to what is not in it (nothing is fetched), or cannot be used.
  """
  spec = next((tool for tool in tools if tool.name == call.name), None)
  if spec is None:
    return [f"there is no tool {call.name!r}"]
  # An empty registry: jsonschema's own would fetch what a schema refers to.
  validator = jsonschema.Draft202012Validator(dict(spec.parameters), registry=Registry())
  try:
    found = [error.message for error in validator.iter_errors(dict(call.arguments))]
  except Exception as error:  # by what it refers to: nothing, itself, or what is no schema
    reason = str(error).partition(" within {")[0]
    raise ValueError(f"the schema of {call.name} cannot be used: {reason}") from error
  unknown = [name for name in call.arguments if spec.properties and name not in spec.properties]
  return found + [f"{name!r} is not an argument of {call.name}" for name in unknown]


def verdict(answer: str, tools: Sequence[ToolSpec], mode: ParseMode) -> list[str]:
  """The calls in an answer, one line each with its validity, or why there are none."""
  parsed = parse(answer, mode)
  if not parsed.attempted:
    return []
  if parsed.error:
    return [f"not a valid call: {PARSE_ERRORS[parsed.error]}"]
  lines = []
  for call in parsed.calls:
    arguments = ", ".join(
      f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items()
    )
    try:
      faults = faults_of(call, tools)
      judged = f"invalid: {'; '.join(faults)}" if faults else "valid"
    except ValueError as error:
      judged = f"not checked: {error}"
    lines.append(f"{call.name}({arguments})  {judged}")
  return lines


def read_tools(path: str | None) -> list[ToolSpec]:
  """The tool schemas of a JSON file: a list, or an object with the list under `tools`."""
  if path is None:
    return []
  try:
    value = read_json(Path(path).read_text(encoding="utf-8"))
    value = value.get("tools") if isinstance(value, dict) else value
    if not isinstance(value, list):
      raise ValueError("expected a JSON list of tool schemas")
    tools = [ToolSpec.from_json(tool) for tool in value]
    for tool in tools:
      jsonschema.Draft202012Validator.check_schema(dict(tool.parameters))
  except (ValueError, jsonschema.SchemaError) as error:
    raise ValueError(f"--tools={path}: {str(error).splitlines()[0]}") from error
  return tools


def opening(tools: Sequence[ToolSpec]) -> list[dict[str, str]]:
  """The messages that every conversation starts with."""
  if FLAGS.system is None and not tools:
    return []
  text = FLAGS.system if FLAGS.system is not None else system_message(tools, FLAGS.style)
  if FLAGS.system is not None and tools and FLAGS.style == "system":
    text += "\n" + system_message(tools, FLAGS.style)
  return [{"role": "system", "content": text}]


def converse(path: str, tools: Sequence[ToolSpec]) -> None:
  """Reads messages and answers them until the input ends."""
  policy, params = load_pretrained(path, dtype=FLAGS.dtype)
  if FLAGS.adapter:
    params = attach(params, *load_adapters(FLAGS.adapter, policy))
  tokenizer = load_tokenizer(path)
  cfg = dataclasses.replace(
    command_line.read(SamplingConfig, group_size=1),
    stop_ids=stop_token_ids(tokenizer, path),
    pad_id=policy.pad_token_id or 0,
  )
  shown_natively = tools if FLAGS.style == "tools" else ()
  messages = opening(tools)
  turn = 0
  while (line := ask()) not in (None, "/quit"):
    if line == "/reset":
      messages = opening(tools)
    if not line or line == "/reset":
      continue
    messages.append({"role": "user", "content": line})
    plain = FLAGS.plain_user_text
    prompt = encode_messages(tokenizer, messages, shown_natively, plain_user_text=plain)
    key = jax.random.fold_in(jax.random.key(FLAGS.seed), turn)
    answer = ""
    for piece in text_pieces(tokenizer, stream(policy, params, prompt, key, cfg), cfg.stop_ids):
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
  converse(FLAGS.model, read_tools(FLAGS.tools))


if __name__ == "__main__":
  app.run(main)
