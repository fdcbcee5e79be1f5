"""The tools of the generated tasks, and the vocabulary that a warm-up corpus must not hold."""

import re
from typing import Any

from grpo_jax.files.assets import read_asset
from grpo_jax.tasks.synthetic.recipes import Argument, Recipe

FUNCTION_WORDS = frozenset(
  "a an and at by for from get in into its me of on or the to up with".split()
)


def _recipe(table: dict[str, Any], pools: dict[str, list[Any]]) -> Recipe:
  """A recipe from its table, in which `values` may name one of the lists in `pools`."""
  for argument in (*table["required"], *table["optional"]):
    values = argument.get("values") or argument["schema"]["enum"]
    argument["values"] = pools[values] if isinstance(values, str) else values
  required = tuple(Argument(**argument) for argument in table.pop("required"))
  optional = tuple(Argument(**argument) for argument in table.pop("optional"))
  return Recipe(**table, required=required, optional=optional)


def _read_recipes(name: str) -> tuple[Recipe, ...]:
  asset = read_asset(f"synthetic/{name}")
  return tuple(_recipe(table, asset["values"]) for table in asset["tools"])


TRAINING_RECIPES = _read_recipes("training_tools")
UNSEEN_RECIPES = _read_recipes("unseen_tools")


def evaluation_words() -> frozenset[str]:
  """Lower-case words of all fifteen tools: of names, descriptions, argument names and values.

  A corpus without these words knows nothing of the evaluation. Function words (`FUNCTION_WORDS`,
  among them the "get" of two tool names) and numbers are left out: no text can do without them.
  """
  texts: list[str] = []
  for recipe in (*TRAINING_RECIPES, *UNSEEN_RECIPES):
    texts += [recipe.name, recipe.description]
    for argument in recipe.arguments:
      texts += [argument.name, *(value for value in argument.values if isinstance(value, str))]
  found = {word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())}
  return frozenset(found - FUNCTION_WORDS)
