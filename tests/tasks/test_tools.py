from __future__ import annotations

import json
import re

from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.synthetic.splits import SPLITS, generate
from grpo_jax.tasks.synthetic.tools import FUNCTION_WORDS, evaluation_words


def test_evaluation_words_cover_names_descriptions_and_values_of_all_tools():
  found = evaluation_words()
  assert {"weather", "forecast", "passengers", "language", "toronto", "celsius", "usd"} <= found
  assert {"pizza", "dropoff", "velvetine", "milk", "vegan"} <= found
  assert not found & {"get", "the", "from", ""} and all(word == word.lower() for word in found)
  for split in SPLITS:
    for task in map(ToolTask.from_row, generate(1, split)):
      for call in task.calls:
        text = json.dumps(call.to_json()).replace("arguments", "").replace("name", "").lower()
        words = set(re.findall(r"[a-z]+", text)) - {"true", "false"} - FUNCTION_WORDS
        assert words <= found
