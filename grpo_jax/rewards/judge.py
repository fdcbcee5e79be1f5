"""A language model as the judge (RLAIF), behind any OpenAI-compatible endpoint."""

import asyncio
import base64
import dataclasses
import functools
import hashlib
import json
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from grpo_jax.files.assets import read_asset
from grpo_jax.files.atomic import write_text
from grpo_jax.files.redaction import HIDDEN, redacted
from grpo_jax.rewards.batch import Reward
from grpo_jax.rewards.breakdown import RewardBreakdown
from grpo_jax.settings import REQUIRED, Settings, setting
from grpo_jax.tasks.schema import ToolTask

Judged = Literal["texts", "answers"]

_ASSET = read_asset("judge")
RUBRICS: Mapping[str, str] = _ASSET["rubrics"]
# What begins as a number, and the number if it is one of JSON's up to the end of its member: the
# first digits of `1/10`, `0,5` or a reply that was cut off are another score.
_SCORE = re.compile(
  r""""score"\s*:\s*(?=[-+.\d])"""
  r"""(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?(?=\s*(?:\}|,\s*["}])))?"""
)


@dataclass(frozen=True)
class JudgeConfig(Settings):
  """Which model judges, what, and how patiently.

  A `base_url` that is read back from a run's record, without its password, takes that from the
  environment.
  """

  model: str = setting(
    REQUIRED, "model that judges, by its name at the endpoint", name="judge_model"
  )
  base_url: str | None = setting(
    None,
    "OpenAI-compatible endpoint, such as http://host:8000/v1; default: OPENAI_BASE_URL",
    name="judge_url",
    repr=False,  # it may hold a password
  )
  api_key: str | None = setting(
    None, "None takes OPENAI_API_KEY; local servers accept any text", flag=False, repr=False
  )
  judged: Judged = setting("texts", "what is judged: texts without a call, or all answers")
  rubrics: Mapping[str, str] = setting(
    lambda: RUBRICS, "what to look for, by wanted behavior", flag=False
  )
  cache_dir: str | None = setting(
    None, "folder that keeps the judge's verdicts, by content; default: none", name="judge_cache"
  )
  time_limit: float = setting(
    30.0,
    "for one request, even if the server keeps sending something",
    unit="seconds",
    above=0,
    name="judge_time_limit",
  )
  retries: int = setting(
    2, "further requests after one that failed; then there is no verdict", low=0,
    name="judge_retries",
  )  # fmt: skip
  parallel: int = setting(8, "requests at a time", low=1, name="judge_parallel")
  max_tokens: int = setting(200, "of a verdict", unit="tokens", low=1, name="judge_max_tokens")

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.model:
      raise ValueError("the judge needs the name of a model")


class JudgeReward(Reward):
  """Scores by a judge's verdict in [0, 1]; where the judge fails, the rule's score stands.

  Every distinct answer is judged once; verdicts are kept on disk by the content of the question,
  so that a run that is repeated or resumed asks nothing twice. `parts["judge/score"]` is the
  verdict, `parts["judge/rule"]` what the rule said.

  Args:
    config: the judge.
    rule: scores what is not judged, and stands in for a judge that fails.

  Raises:
    ValueError: the `openai` package is not installed, or the client cannot be made.
  """

  def __init__(self, config: JudgeConfig, rule: Reward) -> None:
    try:
      import openai  # optional: only who judges needs it
    except ImportError:
      raise ValueError("the judge needs the openai package: pip install openai") from None
    self.name = "judge"
    self.maximum = 1.0
    self.finds_calls_in_prose = rule.finds_calls_in_prose
    self._config = config
    self._rule = rule
    url, headers = _without_credentials(_whole_url(config.base_url))
    key = config.api_key or os.environ.get("OPENAI_API_KEY", "")
    # What a server says about a request that it refuses may repeat them.
    self._secrets = [key, *(header.removeprefix("Basic ") for header in headers.values())]
    # Connections belong to the event loop of one batch, so each batch opens a client of its own.
    self._open_client = functools.partial(
      openai.AsyncOpenAI,
      base_url=url,
      api_key=key or "none",
      default_headers=headers,
      timeout=config.time_limit,
      max_retries=config.retries,
    )
    try:
      self._open_client()
    except openai.OpenAIError as error:
      said = redacted(str(error), self._secrets)
      raise ValueError(f"the judge's client cannot be made: {said}") from None
    if config.cache_dir is not None:
      Path(config.cache_dir).mkdir(parents=True, exist_ok=True)

  def score_batch(
    self, completions: Sequence[str], tasks: Sequence[ToolTask]
  ) -> list[RewardBreakdown]:
    """Scores `completions[i]` as an answer to `tasks[i]`."""
    ruled = self._rule.score_batch(completions, tasks)
    questions = [
      self._question(completion, task) if self._is_judged(found, task) else None
      for completion, task, found in zip(completions, tasks, ruled, strict=True)
    ]
    asked = list(dict.fromkeys(question for question in questions if question is not None))
    with ThreadPoolExecutor(1) as thread:  # a notebook's own thread already runs an event loop
      verdicts = thread.submit(asyncio.run, self._ask_all(asked)).result()
    verdict_on = dict(zip(asked, verdicts, strict=True))
    return [
      found if question is None else _settled(found, verdict_on[question])
      for found, question in zip(ruled, questions, strict=True)
    ]

  def close(self) -> None:
    """Ends the rule's workers; the judge's connections ended with their batch."""
    self._rule.close()

  def _is_judged(self, found: RewardBreakdown, task: ToolTask) -> bool:
    calls = found.error in ("needless_call", "unparsable", "degenerate")
    return self._config.judged == "answers" or (task.behavior != "execute" and not calls)

  def _question(self, completion: str, task: ToolTask) -> str:
    return json.dumps(
      {
        "rubric": self._config.rubrics[task.behavior],
        "tools": [tool.to_json() for tool in task.tools],
        "request": task.request,
        "reference": task.answer,
        "missing": list(task.missing),
        "answer": completion,
      }
    )

  async def _ask_all(self, questions: Sequence[str]) -> list[float | None]:
    slots = asyncio.Semaphore(self._config.parallel)
    async with self._open_client() as client:
      return await asyncio.gather(*(self._verdict(client, slots, q) for q in questions))

  async def _verdict(self, client: Any, slots: asyncio.Semaphore, question: str) -> float | None:
    """The judge's score, or None where it fails, which is counted."""
    config = self._config
    messages = [
      {"role": "system", "content": _ASSET["instruction"]},
      {"role": "user", "content": question},
    ]
    kept = self._kept(messages)
    if kept is not None:
      with suppress(OSError, ValueError):  # not there, or cut off: ask, and write it anew
        return read_score(kept.read_text(encoding="utf-8"))
    try:
      async with slots:
        asked = client.chat.completions.create(
          model=config.model, messages=messages, temperature=0.0, max_tokens=config.max_tokens
        )
        # The client's own limit is on silence: it does not end a reply that trickles.
        reply = await asyncio.wait_for(asked, config.time_limit * (config.retries + 1))
      content = reply.choices[0].message.content or ""
      score = read_score(content)
    except Exception:  # whatever the network, the server or the judge did, the run goes on
      self._count_failure(
        "judge_error", redacted(_encodable(traceback.format_exc()), self._secrets)
      )
      return None
    if kept is not None:
      with suppress(OSError):  # a full disk costs the next run a request, not this run its life
        write_text(kept, _encodable(content))
    return score

  def _kept(self, messages: Any) -> Path | None:
    """The file of a verdict, by the content of the question."""
    if self._config.cache_dir is None:
      return None
    url = self._config.base_url
    key = json.dumps([url and redacted(url), self._config.model, messages])
    return Path(self._config.cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _settled(found: RewardBreakdown, verdict: float | None) -> RewardBreakdown:
  parts = {**found.parts, "judge/rule": found.total, "judge/failed": float(verdict is None)}
  if verdict is None:
    return dataclasses.replace(found, parts=parts)
  return dataclasses.replace(found, total=verdict, parts={**parts, "judge/score": verdict})


def _encodable(text: str) -> str:
  """A text with question marks for halves of surrogate pairs, which no file can hold."""
  return text.encode("utf-8", "replace").decode()


def read_score(text: str) -> float:
  """Reads the score of a verdict: JSON with `score` in [0, 1], alone or inside prose or a fence.

  Raises:
    ValueError: there is none, one is not a JSON number (such as `1/10` or `0,5`), they differ, or
      it is out of range.
  """
  found = _SCORE.findall(text)
  scores = {float(match) for match in found if match}
  if len(scores) != 1 or not all(found):
    raise ValueError(f"the judge gave no single score: {text!r:.300}")
  (score,) = scores
  if not 0.0 <= score <= 1.0:
    raise ValueError(f"the judge's score {score} is not in [0, 1]")
  return score


def _whole_url(url: str | None) -> str | None:
  """A judge's URL with its password, which a run's record leaves out.

  Raises:
    ValueError: it comes from a record, and the environment does not hold it.
  """
  given = os.environ.get("OPENAI_BASE_URL") or None
  if url is None or HIDDEN not in url:
    return url or given
  if given is None or redacted(given) != url:
    raise ValueError(
      f"the judge's URL was recorded as {url}, without its password; set OPENAI_BASE_URL to the "
      "whole of it"
    )
  return given


def _without_credentials(url: str | None) -> tuple[str | None, dict[str, str]]:
  """A URL without its `user:password@`, and headers that say the same: clients log URLs."""
  parts = urlsplit(url or "")
  if not url or parts.username is None:
    return url, {}
  pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
  bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
  return urlunsplit(bare), {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
