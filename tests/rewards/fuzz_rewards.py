"""Fuzzes the parser and every built-in reward with atheris (libFuzzer); not collected by pytest.

python tests/rewards/fuzz_rewards.py -max_total_time=60 [libFuzzer's other flags] [corpus folder]

A crash writes the input that caused it to `crash-*` and ends with another exit code than 0.
"""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["grpo_jax"]):
  from grpo_jax.rewards import ERRORS, PARSE_ERRORS, PARSE_MODES, TIERS, parse, score
  from grpo_jax.rewards.attacks import attacks_on
  from grpo_jax.tasks.schema import BEHAVIORS, ToolTask
  from grpo_jax.tasks.synthetic.splits import generate

TASKS = [ToolTask.from_row(row) for row in generate(0, "train", 40)]
# Beside the generator's tasks: parallel calls, accepted values, and no tools at all.
F = {"a": {"type": "float"}, "b": {"type": "array"}, "c": {"type": "dict"}}
TASKS += [
  ToolTask.from_row(
    {
      "prompt": "x",
      "tools": [{"name": "f", "parameters": {"properties": F}}],
      "reward_model": {"ground_truth": [{"name": "f", "arguments": {"a": i}} for i in (1, 2.5)]},
      "extra_info": {"possible_answers": accepted},
    }
  )
  for accepted in (None, [{"f": {"a": [1], "b": [["x"], ""], "c": [{"k": ["y"]}, ""]}}] * 2)
]
TASKS.append(ToolTask.from_row({"prompt": "x", "reward_model": {"ground_truth": "Which one?"}}))

#: What calls are made of; libFuzzer puts these pieces together.
TOKENS = (
  *("<tool_call>", "</tool_call>", "<|python_tag|>", "```json", '"name":', '"arguments":', "NaN"),
  *('"parameters":', '{"name": "', '[{"name": "', "[f(a=", "1e999", "\\ud800", "-1", "null"),
  *("I can't", "Sorry,", "none of my tools", "Could you tell me the", "departure date", "?"),
)


def check(data: bytes) -> None:
  """One input: the first byte chooses the task, the rest is the completion."""
  provider = atheris.FuzzedDataProvider(data)
  task = TASKS[provider.ConsumeIntInRange(0, len(TASKS) - 1)]
  # With lone surrogates: a tokenizer's half characters can become such a text.
  text = provider.ConsumeUnicode(provider.remaining_bytes())
  for mode in PARSE_MODES:
    parsed = parse(text, mode)
    assert bool(parsed.calls) == (parsed.error is None)
    assert parsed.error is None or parsed.error in PARSE_ERRORS
    for tiers in TIERS:
      found = score(text, task, tiers, mode)
      assert 0.0 <= found.total <= 1.0
      assert found.error is None or found.error in ERRORS
      assert all(math.isfinite(value) for value in found.parts.values())


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    words = Path(folder) / "dictionary"
    words.write_text("".join(f"{json.dumps(token)}\n" for token in TOKENS))
    seeds = Path(folder) / "seeds"
    seeds.mkdir()
    others = {b: [task.answer for task in TASKS if task.behavior == b] for b in BEHAVIORS}
    rng = random.Random(0)
    for index, task in enumerate(TASKS):
      for number, attack in enumerate(attacks_on(task, others, rng)):
        # ConsumeUnicode reads one byte a character after a marker byte; numbers come from the end.
        data = b"\x01" + attack.completion.encode("latin-1", "replace") + bytes([index])
        (seeds / f"{index}-{number}").write_bytes(data)
    arguments = [sys.argv[0], f"-dict={words}", "-timeout=5", "-max_len=65536", *sys.argv[1:]]
    atheris.Setup([*arguments, str(seeds)], check)
    atheris.Fuzz()


if __name__ == "__main__":
  main()
