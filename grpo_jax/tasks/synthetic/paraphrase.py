"""Requests in the words of a language model, where it keeps what the right answer depends on."""

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.files.assets import read_asset
from grpo_jax.files.endpoint import Endpoint, Failed

_ASSET = read_asset("synthetic/paraphrase")
TEMPERATURE = 0.8  # of a rewrite
MAX_GROWTH = 3  # times the length, and MAX_ADDED: a longer reply is no rewrite
MAX_ADDED = 200


def paraphraser(model: str, base_url: str | None, api_key: str | None = None) -> Endpoint[str]:
  """The model that rewrites.

  Args:
    model: by its name at the endpoint.
    base_url: an OpenAI-compatible endpoint; None takes OPENAI_BASE_URL.
    api_key: None takes OPENAI_API_KEY; local servers accept any text.

  Raises:
    ValueError: the `openai` package is not installed, or the client cannot be made.
  """
  return Endpoint(
    "the paraphraser",
    model,
    _read,
    base_url=base_url,
    api_key=api_key,
    max_tokens=300,
    temperature=TEMPERATURE,
  )


def paraphrased(
  rows: Sequence[Mapping[str, Any]], model: Endpoint[str], seed: int
) -> tuple[list[dict[str, Any]], Counter[str]]:
  """The rows with their requests rewritten, as far as the rewrites may be kept.

  Args:
    rows: of a generator, with `extra_info.spoken`, the words that stand for values.
    model: rewrites.
    seed: of the styles that are asked for.

  Returns:
    New rows, with `extra_info.paraphrased` saying which are rewritten; and how many were
    `rewritten`, `changed` (a value is gone, or a number or a quoted text is new) or `failed`.
  """
  made = copy.deepcopy([dict(row) for row in rows])
  counts: Counter[str] = Counter()
  for row, reply in zip(made, model.ask([_question(row, seed) for row in rows]), strict=True):
    message, extra_info = row["prompt"][-1], row["extra_info"]
    if isinstance(reply, Failed):
      outcome = "failed"
    elif keeps(message["content"], reply, extra_info["spoken"]):
      outcome, message["content"] = "rewritten", reply
    else:
      outcome = "changed"
    extra_info["paraphrased"] = outcome == "rewritten"
    counts[outcome] += 1
  return made, counts


def keeps(request: str, rewrite: str, spoken: Sequence[str]) -> bool:
  """Whether a rewrite says all values of a request, and no number or quoted text beside them.

  Args:
    request: the message before.
    rewrite: the message after.
    spoken: the words that stand for values.
  """
  before, after = request.casefold(), rewrite.casefold()
  added = {*_details(after)} - {*_details(before)}
  short = len(after) <= MAX_GROWTH * len(before) + MAX_ADDED
  return short and not added and all(form.casefold() in after for form in spoken)


def _details(text: str) -> list[str]:
  return re.findall(r"\d+", text) + re.findall(r'"[^"]+"|“[^”]+”', text)


def _question(row: Mapping[str, Any], seed: int) -> list[dict[str, str]]:
  rng = random.Random(f"{seed}:{row['extra_info']['id']}")
  asked = {
    "request": row["prompt"][-1]["content"],
    "keep": row["extra_info"]["spoken"],
    "style": rng.choice(_ASSET["styles"]),
  }
  return [
    {"role": "system", "content": _ASSET["instruction"]},
    {"role": "user", "content": json.dumps(asked, ensure_ascii=False)},
  ]


def _read(reply: str) -> str:
  """The rewritten message in a reply.

  Raises:
    ValueError: there is none.
  """
  text = reply.strip()
  fenced = re.fullmatch(r"```\w*\n(.*)\n```", text, re.DOTALL)
  text = fenced[1].strip() if fenced else text
  if not text:
    raise ValueError("the paraphraser wrote nothing")
  text.encode()  # half of a surrogate pair, which no file can hold, is a ValueError
  return text
