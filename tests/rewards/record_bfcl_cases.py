"""Records verdicts of the Berkeley leaderboard's AST checker on right and mutated answers.

Not a test: it made `bfcl_cases.jsonl`, which `test_possible_answers.py` replays. The wheel of
bfcl_eval (Apache-2.0, https://github.com/ShishirPatil/gorilla) only has to be unpacked:

  pip download --no-deps bfcl-eval==2026.3.23 && unzip -d bfcl bfcl_eval-*.whl
  python tests/rewards/record_bfcl_cases.py bfcl tests/rewards/bfcl_cases.jsonl

With `--all` as a third argument nothing is written: every mutation of every task of the
single-turn Python categories is compared with our own verdict, and the counts are printed.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CATEGORIES = (
  "simple_python",
  "multiple",
  "parallel",
  "parallel_multiple",
  "live_simple",
  "live_multiple",
  "live_parallel",
  "live_parallel_multiple",
)
TASKS_PER_CATEGORY = 16
CASES_PER_TASK = 10

Calls = list[dict[str, dict[str, Any]]]


def load_checker(root: Path):
  """Imports the checker without the client libraries of every model it knows."""
  sys.path.insert(0, str(root))
  config = types.ModuleType("bfcl_eval.constants.model_config")
  config.MODEL_CONFIG_MAPPING = defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=False))
  sys.modules[config.__name__] = config
  for language in ("java", "js"):
    name = f"bfcl_eval.eval_checker.ast_eval.type_convertor.{language}_type_converter"
    module = types.ModuleType(name)
    setattr(module, f"{language}_type_converter", None)
    sys.modules[name] = module
  from bfcl_eval.constants.enums import Language
  from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

  def verdict(tools: list, calls: Calls, accepted: list, category: str) -> bool:
    return ast_checker(tools, copy.deepcopy(calls), accepted, Language.PYTHON, category, "any")[
      "valid"
    ]

  return verdict


def concrete(value: Any) -> Any:
  """An accepted object maps its keys to accepted values: takes the first of each."""
  if isinstance(value, dict):
    return {
      key: concrete(options[0])
      for key, options in value.items()
      if isinstance(options, list) and options and "" not in options
    }
  if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
    return [concrete(item) for item in value]
  return value


def right_answer(accepted: list, rng: random.Random, vary: bool) -> Calls:
  calls = []
  for entry in accepted:
    ((name, arguments),) = entry.items()
    chosen = {}
    for argument, options in arguments.items():
      given = [option for option in options if option != ""]
      if given and not (vary and "" in options and rng.random() < 0.5):
        chosen[argument] = concrete(rng.choice(given) if vary else given[0])
    calls.append({name: chosen})
  return calls


def other_values(value: Any) -> list[Any]:
  if isinstance(value, bool):
    return [not value, str(value), int(value), None]
  if isinstance(value, int):
    return [value + 1, float(value), str(value), bool(value), -value, [value]]
  if isinstance(value, float):
    return [value + 0.5, int(value), str(value), [value]]
  if isinstance(value, str):
    spaced = value.replace(" ", "_"), value.replace(",", " "), value.replace("'", '"')
    return [value.upper(), value + " x", *spaced, f" {value}. ", value[:-1], "", 5, [value], None]
  if isinstance(value, list):
    upper = [item.upper() if isinstance(item, str) else item for item in value]
    typed = [float(item) if isinstance(item, int) else item for item in value]
    texts = [str(item) for item in value]
    return [value[:-1], value + value[:1], value[::-1], [], str(value), upper, typed, texts, [None]]
  if isinstance(value, dict):
    without = [{k: v for k, v in value.items() if k != name} for name in value]
    return [{}, {**value, "zz": 1}, str(value), *without, *({**value, k: "zz"} for k in value)]
  return ["", 0, "None"]


def mutations(calls: Calls, tools: list, rng: random.Random) -> Iterator[Calls]:
  yield calls[::-1]
  yield calls[:-1]
  yield [*calls, calls[0]]
  for index, call in enumerate(calls):
    ((name, arguments),) = call.items()

    def replaced(new: dict, tool: str = name, at: int = index) -> Calls:
      return [*calls[:at], {tool: new}, *calls[at + 1 :]]

    yield replaced(arguments, name + "x")
    yield replaced({**arguments, "zzz": 1})
    schema = next((tool["parameters"] for tool in tools if tool["name"] == name), {})
    for argument in schema.get("properties", {}):
      if argument not in arguments:
        yield replaced({**arguments, argument: rng.choice([0, "", None, "x", False, [], {}])})
    for argument, value in arguments.items():
      yield replaced({k: v for k, v in arguments.items() if k != argument})
      for other in other_values(value):
        yield replaced({**arguments, argument: other})


def without_descriptions(schema: Any) -> Any:
  if isinstance(schema, list):
    return [without_descriptions(item) for item in schema]
  if not isinstance(schema, dict):
    return schema
  return {
    key: without_descriptions(value)
    for key, value in schema.items()
    if key != "description" or not isinstance(value, str)
  }


def as_text(calls: Calls) -> str:
  return json.dumps([{"name": n, "arguments": a} for call in calls for n, a in call.items()])


def tasks(root: Path, category: str) -> Iterator[tuple[str, list, list]]:
  data = root / "bfcl_eval" / "data"
  name = f"BFCL_v4_{category}.json"
  rows = map(json.loads, (data / name).read_text().splitlines())
  questions = {row["id"]: row["function"] for row in rows}
  for line in (data / "possible_answer" / name).read_text().splitlines():
    row = json.loads(line)
    yield row["id"], questions[row["id"]], row["ground_truth"]


def task_row(tools: list, accepted: list, gold: Calls) -> dict[str, Any]:
  return {
    "prompt": "x",
    "tools": tools,
    "reward_model": {"ground_truth": as_text(gold)},
    "extra_info": {"behavior": "execute", "possible_answers": accepted},
  }


def main(root: Path, out: str) -> None:
  verdict = load_checker(root)
  rng = random.Random(0)
  counts: Counter[tuple[str, bool, bool]] = Counter()
  lines = []
  for category in CATEGORIES:
    chosen = list(tasks(root, category))
    if out != "--all":
      chosen = rng.sample(chosen, min(TASKS_PER_CATEGORY, len(chosen)))
    for task_id, tools, accepted in chosen:
      gold = right_answer(accepted, rng, vary=False)
      answers = [gold, *(right_answer(accepted, rng, vary=True) for _ in range(3))]
      mutated = [calls for calls in mutations(gold, tools, rng) if calls]
      if out == "--all":
        from grpo_jax.rewards import score
        from grpo_jax.tasks.schema import ToolTask

        task = ToolTask.from_row(task_row(tools, accepted, gold))
        for calls in answers + mutated:
          ours = score(as_text(calls), task, reward="binary").total == 1.0
          counts[category, verdict(tools, calls, accepted, category), ours] += 1
        continue
      # Mutations that the leaderboard still accepts are rare and tell most: they go first.
      mutated.sort(key=lambda calls: (not verdict(tools, calls, accepted, category), rng.random()))
      kept = answers[:2] + mutated[: CASES_PER_TASK // 2] + mutated[-CASES_PER_TASK // 2 :]
      cases = {as_text(calls): verdict(tools, calls, accepted, category) for calls in kept}
      used = {name for entry in accepted for name in entry}
      shown = [without_descriptions(tool) for tool in tools if tool["name"] in used]
      row = task_row(shown, accepted, gold)
      lines.append(json.dumps({"id": task_id, "row": row, "cases": list(cases.items())}))
  for key, count in sorted(counts.items()):
    category, theirs, ours = key
    print(f"{category}: leaderboard {theirs}, ours {ours}: {count}")
  if lines:
    Path(out).write_text("\n".join(lines) + "\n")
    print(len(lines), "tasks written to", out)


if __name__ == "__main__":
  main(Path(sys.argv[1]), sys.argv[2])
