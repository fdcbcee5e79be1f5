"""The judge against a real HTTP server on this machine that speaks the OpenAI protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from grpo_jax.rewards import BuiltInReward, JudgeConfig, JudgeReward, RewardConfig, load_reward
from grpo_jax.rewards.judge import read_score
from grpo_jax.tasks.schema import ToolTask

pytest.importorskip("openai")

CLARIFY = ToolTask.from_row(
  {
    "prompt": "Weather?",
    "reward_model": {"ground_truth": "Which city?"},
    "extra_info": {"missing": ["city"]},
  }
)
EXECUTE = ToolTask.from_row(
  {"prompt": "x", "reward_model": {"ground_truth": [{"name": "f", "arguments": {"a": "Oslo"}}]}}
)


class Endpoint:
  """A chat endpoint whose judge likes answers that mention a city.

  Attributes:
    url: for the client.
    requests: the bodies received.
    replies: what to do instead, by answer text: a status code, a reply text, seconds to wait, the
      body of an error, `trickle` to send a space every tenth of a second for ten, or `echo` to
      refuse the request and say with which credentials it came.
  """

  def __init__(self) -> None:
    self.requests: list[dict[str, Any]] = []
    self.replies: dict[str, Any] = {}
    endpoint = self

    class Handler(BaseHTTPRequestHandler):
      def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        sent = self.headers["Authorization"]
        endpoint.requests.append({"path": self.path, "authorization": sent, **body})
        answer = json.loads(body["messages"][1]["content"])["answer"]
        special = endpoint.replies.get(answer)
        if isinstance(special, list):
          special = special.pop(0) if special else None
        if isinstance(special, float):
          time.sleep(special)
        if special == "echo":
          data = json.dumps({"error": {"message": f"wrong credentials: {sent}"}}).encode()
          self.send_response(401)
          self.send_header("Content-Type", "application/json")
          self.send_header("Content-Length", str(len(data)))
          self.end_headers()
          self.wfile.write(data)
          return
        if isinstance(special, int):
          self.send_error(special)
          return
        if isinstance(special, bytes):
          self.send_response(400)
          self.send_header("Content-Length", str(len(special)))
          self.end_headers()
          self.wfile.write(special)
          return
        if special == "trickle":
          self.send_response(200)
          self.send_header("Content-Length", "1000")
          self.end_headers()
          with contextlib.suppress(OSError):  # until the client has had enough
            for _ in range(100):
              self.wfile.write(b" ")
              time.sleep(0.1)
          return
        score = 0.875 if "city" in answer else 0.125
        content = special if isinstance(special, str) else f'{{"score": {score}, "reason": "-"}}'
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        data = json.dumps({**reply, "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

      def log_message(self, format: str, *args: Any) -> None:
        return

    self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def close(self) -> None:
    self._server.shutdown()
    self._server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
  endpoint = Endpoint()
  yield endpoint
  endpoint.close()


def judge(endpoint: Endpoint, **settings: Any) -> JudgeReward:
  settings = {"retries": 0, "time_limit": 5.0, "api_key": "none", **settings}
  config = JudgeConfig("some-model", endpoint.url, **settings)
  return JudgeReward(config, BuiltInReward("tiered"))


def test_texts_are_judged_and_calls_are_left_to_the_rule(endpoint):
  with judge(endpoint) as reward:
    found = reward.score_batch(
      ["Which city?", "Tell me more.", '[{"name": "f", "arguments": {}}]', "", EXECUTE.answer],
      [CLARIFY, CLARIFY, CLARIFY, CLARIFY, EXECUTE],
    )
  assert [one.total for one in found] == [0.875, 0.125, 0.0, 0.0, 1.0]
  assert found[0].parts["judge/score"] == 0.875 and found[0].parts["judge/rule"] == 1.0
  assert found[1].error == "no_question"
  assert [request["path"] for request in endpoint.requests] == ["/v1/chat/completions"] * 2
  question = json.loads(endpoint.requests[0]["messages"][1]["content"])
  assert question["missing"] == ["city"] and question["request"] == "Weather?"
  assert "ask" in question["rubric"]


def test_whole_answers_are_judged_on_demand(endpoint):
  with judge(endpoint, judged="answers") as reward:
    found = reward.score_batch([EXECUTE.answer, "city"], [EXECUTE, EXECUTE])
  assert [one.total for one in found] == [0.125, 0.875]


def test_equal_answers_are_asked_once_and_kept_on_disk(endpoint, tmp_path):
  for _ in range(2):
    with judge(endpoint, cache_dir=str(tmp_path)) as reward:
      found = reward.score_batch(["Which city?"] * 4, [CLARIFY] * 4)
      assert [one.total for one in found] == [0.875] * 4
    assert len(endpoint.requests) == 1
  (kept,) = tmp_path.iterdir()
  kept.write_text('{"sco')  # cut off: asked again
  with judge(endpoint, cache_dir=str(tmp_path)) as reward:
    assert reward.score_batch(["Which city?"], [CLARIFY])[0].total == 0.875
  assert len(endpoint.requests) == 2


def test_a_cache_that_cannot_be_used_costs_requests_and_ends_nothing(endpoint, tmp_path):
  folder = tmp_path / "cache"
  with judge(endpoint, cache_dir=str(folder)) as reward:
    folder.rmdir()
    assert reward.score_batch(["Which city?"], [CLARIFY])[0].total == 0.875
    assert reward.failures() == {}


@pytest.mark.parametrize(
  "reply", [500, 400, "I like it.", '{"score": 2}', '{"score": 0.1} or {"score": 0.9}', 1.5]
)
def test_a_failed_judge_falls_back_to_the_rule_and_is_counted(endpoint, reply, tmp_path):
  endpoint.replies["Which city?"] = reply
  with judge(endpoint, time_limit=0.5, cache_dir=str(tmp_path)) as reward:
    found = reward.score_batch(["Which city?", "A city?"], [CLARIFY] * 2)
    assert [one.total for one in found] == [1.0, 0.875]
    assert [one.parts["judge/failed"] for one in found] == [1.0, 0.0]
    assert reward.failures() == {"judge_error": 1}
    assert "Error" in reward.first_traceback
  assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
  "reply", [b'{"error": {"message": "half \\ud800 of it"}}', "half \ud800 of it"]
)
def test_half_a_surrogate_pair_of_a_judge_is_kept_as_text_that_a_file_can_hold(endpoint, reply):
  endpoint.replies["Which city?"] = reply
  with judge(endpoint) as reward:
    assert reward.score_batch(["Which city?"], [CLARIFY])[0].total == 1.0
    reward.first_traceback.encode()
    assert "half" in reward.first_traceback and "of it" in reward.first_traceback


def test_a_request_that_fails_once_is_tried_again(endpoint):
  endpoint.replies["Which city?"] = [500]
  with judge(endpoint, retries=1) as reward:
    assert reward.score_batch(["Which city?"], [CLARIFY])[0].total == 0.875
    assert reward.failures() == {}
  assert len(endpoint.requests) == 2


def test_requests_run_side_by_side(endpoint):
  answers = [f"city {number}?" for number in range(8)]
  endpoint.replies = dict.fromkeys(answers, 0.5)
  with judge(endpoint, parallel=8) as reward:
    start = time.monotonic()
    reward.score_batch(answers, [CLARIFY] * 8)
    assert time.monotonic() - start < 3.0


def test_the_judge_is_loaded_by_name(endpoint):
  config = RewardConfig(judge=JudgeConfig("m", endpoint.url, api_key="none"))
  with load_reward("judge", config) as reward:
    assert reward.score_batch(["Which city?"], [CLARIFY])[0].total == 0.875


@pytest.mark.parametrize(
  ("text", "score"),
  [
    ('{"score": 1, "reason": "x"}', 1.0),
    ('```json\n{"reason": "x", "score": 0.25}\n```', 0.25),
    ('{"score": 0.5} ... {"score": 0.5}', 0.5),
    ('{"score": 1e-1}', 0.1),
    ('{"score": 2.5E-1, "reason": "x"}', 0.25),
    ('{"reason": "x",\n "score": 0.75\n}', 0.75),
    ('{"score": 0.5, "reason": "cut of', 0.5),
    ('{"score": 0.5 ,}', 0.5),
    ('As {"score": <a number>} was asked for: {"score": 0.5}', 0.5),
    ('{"score": 0.5, "reason": "it says \\"score\\": 1"}', 0.5),
  ],
)
def test_scores_are_read_from_verdicts(text, score):
  assert read_score(text) == score


@pytest.mark.parametrize("text", ["", "1", '{"score": -0.5}', '{"score": "1"}', '{"score": 1.5}'])
def test_verdicts_without_a_score_in_range_are_refused(text):
  with pytest.raises(ValueError, match="score"):
    read_score(text)


@pytest.mark.parametrize(
  "score",
  [*"1/10 1,000 0,5 1% 01 1. .5 +1 0.5.1 1_0 1e -Inf 1e999 0x1 0.5f \uff11".split(), "1 out of 10"],
)
def test_a_score_is_read_whole_or_not_at_all(score):
  for text in (f'{{"score": {score}}}', f'{{"score": {score}, "reason": "x"}}'):
    with pytest.raises(ValueError, match="score"):
      read_score(text)
    with pytest.raises(ValueError, match="score"):
      read_score(text + ' {"score": 1}')


@pytest.mark.parametrize("text", ['{"score": 1', '{"score": 0.5', '{"score": 0,', '"score": 1 or'])
def test_a_score_that_may_be_cut_off_is_refused(text):
  with pytest.raises(ValueError, match="score"):
    read_score(text)


def test_contradicting_settings_are_rejected():
  with pytest.raises(ValueError, match="texts, answers"):
    JudgeConfig("m", judged="all")
  with pytest.raises(ValueError, match="name of a model"):
    JudgeConfig("")
  with pytest.raises(ValueError, match="--judge_time_limit=0 must be above 0"):
    JudgeConfig("m", time_limit=0)


def test_a_reply_that_trickles_is_bounded_and_the_others_stand(endpoint):
  endpoint.replies = {"Which town?": "trickle"}
  began = time.monotonic()
  with judge(endpoint, time_limit=0.5, retries=1) as reward:
    slow, quick = reward.score_batch(["Which town?", "Which city?"], [CLARIFY, CLARIFY])
  assert time.monotonic() - began < 5
  assert slow.parts["judge/failed"] == 1.0 and quick.total == 0.875
  assert reward.failures() == {"judge_error": 1}


def test_a_judge_scores_where_an_event_loop_runs_already(endpoint):
  async def in_a_notebook() -> float:
    with judge(endpoint) as reward:
      return reward.score_batch(["Which city?"], [CLARIFY])[0].total

  assert asyncio.run(in_a_notebook()) == 0.875


def with_password(endpoint: Endpoint, password: str) -> str:
  return endpoint.url.replace("http://", f"http://bob:{password}@")


@pytest.mark.parametrize("in_url", [False, True])
def test_what_the_judge_answers_and_logs_holds_no_secret(endpoint, in_url, caplog):
  endpoint.replies = {"Which city?": "echo"}
  url = with_password(endpoint, "s3%2Fcret") if in_url else endpoint.url
  config = JudgeConfig("m", url, "sk-my-own-key", retries=0, time_limit=5.0)
  with caplog.at_level("DEBUG"), JudgeReward(config, BuiltInReward("tiered")) as reward:
    reward.score_batch(["Which city?"], [CLARIFY])
  wanted = (
    f"Basic {base64.b64encode(b'bob:s3/cret').decode()}" if in_url else "Bearer sk-my-own-key"
  )
  assert endpoint.requests[0]["authorization"] == wanted
  assert reward.failures() == {"judge_error": 1}
  assert "wrong credentials" in reward.first_traceback
  for said in (reward.first_traceback, caplog.text):
    for secret in ("sk-my-own-key", "s3%2Fcret", "s3/cret", wanted.split()[1]):
      assert secret not in said


def test_a_recorded_url_takes_its_password_from_the_environment(endpoint, tmp_path, monkeypatch):
  whole = with_password(endpoint, "s3cret")
  recorded = whole.replace("bob:s3cret", "***")
  monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
  with pytest.raises(ValueError, match=r"without its password; .*OPENAI_BASE_URL"):
    JudgeReward(JudgeConfig("m", recorded), BuiltInReward("tiered"))
  monkeypatch.setenv("OPENAI_BASE_URL", whole)
  for url in (whole, recorded):  # a cached verdict is found again by either
    config = JudgeConfig("m", url, cache_dir=str(tmp_path))
    with JudgeReward(config, BuiltInReward("tiered")) as reward:
      assert reward.score_batch(["Which city?"], [CLARIFY])[0].total == 0.875
  assert [request["authorization"][:6] for request in endpoint.requests] == ["Basic "]
