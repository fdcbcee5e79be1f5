"""A language model as the judge (RLAIF), behind any OpenAI-compatible endpoint."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from grpo_jax.files.assets import read_asset
from grpo_jax.files.endpoint import Endpoint, Failed
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
    self.name = "judge"
    self.maximum = 1.0
    self.finds_calls_in_prose = rule.finds_calls_in_prose
    self._config = config
    self._rule = rule
    self._endpoint = Endpoint(
      "the judge",
      config.model,
      read_score,
      base_url=config.base_url,
      api_key=config.api_key,
      cache_dir=config.cache_dir,
      time_limit=config.time_limit,
      retries=config.retries,
      parallel=config.parallel,
      max_tokens=config.max_tokens,
    )

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
    verdict_on = dict(zip(asked, self._verdicts(asked), strict=True))
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

  def _verdicts(self, questions: Sequence[str]) -> list[float | None]:
    """The judge's scores, None where it fails, which is counted."""
    instruction = {"role": "system", "content": _ASSET["instruction"]}
    chats = [(instruction, {"role": "user", "content": question}) for question in questions]
    verdicts: list[float | None] = []
    for found in self._endpoint.ask(chats):
      if isinstance(found, Failed):
        self._count_failure("judge_error", found.said)
      verdicts.append(None if isinstance(found, Failed) else found)
    return verdicts


def _settled(found: RewardBreakdown, verdict: float | None) -> RewardBreakdown:
  parts = {**found.parts, "judge/rule": found.total, "judge/failed": float(verdict is None)}
  if verdict is None:
    return dataclasses.replace(found, parts=parts)
  return dataclasses.replace(found, total=verdict, parts={**parts, "judge/score": verdict})


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
