"""The vocabulary of the evaluation, which a policy warmed up elsewhere must not have seen."""

from __future__ import annotations

import re

from grpo_jax.tasks.synthetic.recipes import words
from grpo_jax.tasks.synthetic.training_tools import TRAINING_RECIPES
from grpo_jax.tasks.synthetic.unseen_tools import UNSEEN_RECIPES

FUNCTION_WORDS = frozenset(
  words("a an and at by for from get in into its me of on or the to up with")
)


def evaluation_words() -> frozenset[str]:
  """Lower-case words of all fifteen tools: of names, descriptions, argument names and values.

  A corpus without these words knows nothing of the evaluation. Function words (`FUNCTION_WORDS`,
  among them the "get" of two tool names) and numbers are left out: no text can do without them.
  """
  texts: list[str] = []
  for recipe in (*TRAINING_RECIPES, *UNSEEN_RECIPES):
    texts += [recipe.name, recipe.description]
    for argument in recipe.arguments:
      texts += [argument.name, str(argument.schema.get("description", ""))]
      texts += [value for value in argument.values if isinstance(value, str)]
  found = {word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())}
  return frozenset(found - FUNCTION_WORDS)
