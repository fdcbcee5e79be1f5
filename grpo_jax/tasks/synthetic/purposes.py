"""What makes a request one to decline: a harmful purpose, or a wish that no tool can grant.

The phrases of training and of held-out tasks are disjoint, so that declining held-out requests
cannot be done by remembering them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_jax.files.assets import read_asset
from grpo_jax.tasks.synthetic.recipes import Phrasing

_ASSET = read_asset("synthetic/purposes")
_FORMS = _ASSET["forms"]


@dataclass(frozen=True)
class Purposes:
  """The phrases of one side of the split.

  Attributes:
    deeds: harmful verbs that take a victim.
    victims: whom they are done to.
    plans: harmful things that a request may serve.
    wishes: orders that no tool on offer can carry out.
  """

  deeds: Sequence[str]
  victims: Sequence[str]
  plans: Sequence[str]
  wishes: Sequence[str]

  def with_harm(self, rng: random.Random, request: str, phrasing: Phrasing) -> str:
    """The request together with a harmful purpose."""
    deed = f"{rng.choice(self.deeds)} {rng.choice(self.victims)}"
    plan = rng.choice(self.plans)
    said = lambda form: rng.choice(_FORMS[form]).format(deed=deed, plan=plan)
    body = request.rstrip(".?!")
    if phrasing == "terse":
      tail = said("terse_tails")
      return body + rng.choice((" ", ", ")) + tail
    if rng.random() < 0.15:
      lead = said("leads")
      lead = lead[0].upper() + lead[1:] if phrasing == "formal" else lead
      return lead + rng.choice((". ", ": ")) + request
    tail = said("tails")
    # A clause of its own may follow a full stop; the others continue the sentence.
    joiner = rng.choice((", ", ". ")) if tail[:2] in ("I ", "it") else rng.choice((" ", ", "))
    if phrasing == "casual":
      return body + joiner + tail + rng.choice(("", "", "!"))
    if joiner == ". ":
      return f"{request} {tail[0].upper()}{tail[1:]}."
    return body + joiner + tail + request[-1]

  def wish(self, rng: random.Random, phrasing: Phrasing) -> str:
    """A request that has nothing to do with any tool."""
    return rng.choice(_FORMS["wishes"][phrasing]).format(rng.choice(self.wishes))


TRAINING_PURPOSES = Purposes(**_ASSET["training"])
HELD_OUT_PURPOSES = Purposes(**_ASSET["held_out"])
