"""The seeded generator of tool-calling tasks: 60% execute, 25% clarify, 15% refuse.

`train` and `seen` use the five training tools, `unseen` ten others. The first two are kept apart by
a hash of what is asked, not by drawing them together: whatever their seeds and sizes, no (tool,
arguments) pair and no prompt of `seen` occurs in `train`.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from grpo_jax.tasks.schema import Behavior, ToolCall
from grpo_jax.tasks.synthetic.prompts import Style, task_row
from grpo_jax.tasks.synthetic.purposes import HELD_OUT_PURPOSES, TRAINING_PURPOSES, Purposes
from grpo_jax.tasks.synthetic.recipes import PHRASINGS, Argument, Phrasing, Recipe
from grpo_jax.tasks.synthetic.shares import planned
from grpo_jax.tasks.synthetic.tools import TRAINING_RECIPES, UNSEEN_RECIPES

Split = Literal["train", "seen", "unseen"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_SIZES: Mapping[Split, int] = {"train": 1500, "seen": 200, "unseen": 400}

Situation = Literal["complete", "missing", "harmful", "unfit", "wish"]
# What a task is made of, in percent: `unfit` asks for a tool that is not on offer, `wish` for what
# no tool does.
SITUATIONS: Mapping[Situation, float] = {
  "complete": 60, "missing": 25, "harmful": 7.5, "unfit": 4.5, "wish": 3,
}  # fmt: skip
BEHAVIOR_OF: Mapping[Situation, Behavior] = {
  "complete": "execute", "missing": "clarify",
  "harmful": "refuse", "unfit": "refuse", "wish": "refuse",
}  # fmt: skip
TOOLS_SHOWN = ((1, 2, 3), (50, 35, 15))  # how many tools a prompt shows, and how often in percent
OPTIONAL_SHARE = 0.45  # of the optional arguments are given
TWO_MISSING_SHARE = 0.15  # of the clarify tasks with several required arguments
HELD_OUT_PART = 5  # one request in so many is kept for `seen`
MAX_DRAWS = 500  # per row, before the generator gives up finding one that is new

NO_TOOL = ("Sorry, none of my tools can do that.", "Sorry, I have no tool for that.")
WONT = ("Sorry, I can't help with that.", "Sorry, I won't help with that.")


def generate(
  seed: int, split: Split, size: int | None = None, style: Style = "system"
) -> list[dict[str, Any]]:
  """Makes the rows of one split: a pure function of its arguments.

  Args:
    seed: of the data; another seed gives other rows with the same distribution.
    split: `train`, `seen` (held-out prompts of the same tools) or `unseen` (other tools).
    size: number of rows; the split's own size when None.
    style: where the schemas go, see `prompts.system_message`.

  Returns:
    Rows of the JSONL data contract, in shuffled order. Situations have exactly their shares
    (rounded) and tools are asked for equally often; `extra_info.tool` is "none" where the tool
    asked for is not on offer.

  Raises:
    ValueError: an unknown split, a size below 1, or more rows than there are distinct requests.
  """
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
  size = SPLIT_SIZES[split] if size is None else size
  if size < 1:
    raise ValueError(f"size must be at least 1 row, got {size}")
  recipes = UNSEEN_RECIPES if split == "unseen" else TRAINING_RECIPES
  purposes = TRAINING_PURPOSES if split == "train" else HELD_OUT_PURPOSES
  rows: list[dict[str, Any]] = []
  taken: set[tuple[str, ...]] = set()
  plan = planned(random.Random(f"{seed}:{split}"), size, SITUATIONS, lambda _: recipes)
  for index, (situation, recipe) in enumerate(plan):
    rng = random.Random(f"{seed}:{split}:{index}")
    for _ in range(MAX_DRAWS):
      draft = _draft(rng, situation, recipe, purposes)
      shown = _shown(rng, situation, recipe, recipes)
      prompt = (draft.request.lower(), *(tool.name for tool in shown))
      if prompt not in taken and _belongs(draft, split):
        break
    else:
      raise ValueError(f"{split}: cannot make {size} distinct tasks, only about {index}")
    taken.add(prompt)
    rows.append(
      task_row(
        tools=[tool.spec for tool in shown],
        request=draft.request,
        ground_truth=draft.ground_truth,
        style=style,
        extra_info={
          "behavior": BEHAVIOR_OF[situation],
          "situation": situation,
          "tool": recipe.name if recipe in shown else "none",
          "phrasing": draft.phrasing,
          "split": split,
          "id": f"{split}-{index:04d}",
          "missing": [argument.name for argument in draft.missing],
        },
      )
    )
  return rows


@dataclass(frozen=True)
class _Draft:
  """A request and its right answer, before tools are put beside it.

  Attributes:
    request: the user's message.
    ground_truth: the wanted calls, or the text of a right answer.
    phrasing: how it is said.
    asked: what decides which split it belongs to; empty for what belongs to every one.
    missing: required arguments that the request does not give.
  """

  request: str
  ground_truth: Sequence[ToolCall] | str
  phrasing: Phrasing
  asked: str
  missing: Sequence[Argument] = ()


def _draft(rng: random.Random, situation: Situation, recipe: Recipe, purposes: Purposes) -> _Draft:
  phrasing = rng.choice(PHRASINGS)
  if situation == "wish":
    return _Draft(purposes.wish(rng, phrasing), rng.choice(NO_TOOL), phrasing, "")
  values = recipe.draw_values(rng, OPTIONAL_SHARE)
  if situation == "missing":
    several = len(recipe.required) > 1 and rng.random() < TWO_MISSING_SHARE
    dropped = rng.sample(recipe.required, 2 if several else 1)
    missing = [argument for argument in recipe.required if argument in dropped]
    kept = {name: v for name, v in values.items() if name not in {a.name for a in missing}}
    request = recipe.ask(rng, kept, phrasing)
    question = _question(rng, [argument.spoken for argument in missing])
    return _Draft(request, question, phrasing, request.lower(), missing)
  request = recipe.ask(rng, values, phrasing)
  asked = json.dumps([recipe.name, values])
  if situation == "complete":
    return _Draft(request, [ToolCall(recipe.name, values)], phrasing, asked)
  if situation == "unfit":
    return _Draft(request, rng.choice(NO_TOOL), phrasing, asked)
  return _Draft(purposes.with_harm(rng, request, phrasing), rng.choice(WONT), phrasing, asked)


def _question(rng: random.Random, spoken: Sequence[str]) -> str:
  be = "are" if len(spoken) > 1 or spoken[0].endswith("s") else "is"
  forms = ("Which {} should I use?", "Could you tell me the {}?", f"What {be} the {{}}?")
  return rng.choice(forms).format(" and the ".join(spoken))


def _shown(
  rng: random.Random, situation: Situation, recipe: Recipe, recipes: Sequence[Recipe]
) -> list[Recipe]:
  """The tools on offer: without the one that is asked for when nothing is to fit."""
  number = rng.choices(*TOOLS_SHOWN)[0]
  others = [other for other in recipes if other is not recipe]
  if situation in ("unfit", "wish"):
    return rng.sample(others, number)
  shown = [recipe, *rng.sample(others, number - 1)]
  rng.shuffle(shown)
  return shown


def _belongs(draft: _Draft, split: Split) -> bool:
  """Whether what is asked falls into the split's part of all requests."""
  if split == "unseen" or not draft.asked:  # kept apart by their tools and their wishes
    return True
  digest = hashlib.sha256(draft.asked.encode()).hexdigest()
  held_out = int(digest[:8], 16) % HELD_OUT_PART == 0
  return held_out == (split == "seen")
