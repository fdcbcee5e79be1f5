"""The paraphraser against a real HTTP server on this machine that speaks the OpenAI protocol."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from grpo_jax.tasks.jsonl import load_tasks
from grpo_jax.tasks.schema import ToolSpec
from grpo_jax.tasks.synthetic.own_tools import own_rows
from grpo_jax.tasks.synthetic.paraphrase import keeps, paraphrased, paraphraser

pytest.importorskip("openai")

SCRIPT = Path(__file__).parents[2] / "experiments" / "make_data.py"
TOOL = {
  "name": "track_parcel",
  "description": "Track a parcel.",
  "parameters": {
    "type": "object",
    "properties": {"parcel_id": {"type": "string"}, "city": {"type": "string"}},
    "required": ["parcel_id", "city"],
  },
}


def reworded(asked: dict[str, Any]) -> str:
  """All values in other words around them."""
  return f"Would you mind? It's about {', '.join(asked['keep']) or 'something'}"


class Endpoint:
  """A chat endpoint that answers what `reply` makes of the question, or that status.

  Attributes:
    url: for the client.
    requests: the questions received.
    reply: from the question to a text or a status code.
  """

  def __init__(self) -> None:
    self.requests: list[dict[str, Any]] = []
    self.reply: Callable[[dict[str, Any]], str | int] = reworded
    endpoint = self

    class Handler(BaseHTTPRequestHandler):
      def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = json.loads(body["messages"][1]["content"])
        endpoint.requests.append({**asked, "model": body["model"]})
        reply = endpoint.reply(asked)
        if isinstance(reply, int):
          self.send_error(reply)
          return
        message = {"role": "assistant", "content": reply}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        data = json.dumps({**head, "choices": [choice]}).encode()
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


def rows(size: int = 20) -> list[dict[str, Any]]:
  return own_rows([ToolSpec.from_json(TOOL)], 0, "train", size)


def requests(rows: list[dict[str, Any]]) -> list[str]:
  return [row["prompt"][-1]["content"] for row in rows]


def test_rewrites_with_all_values_take_the_place_of_the_requests(endpoint):
  before = rows()
  after, counts = paraphrased(before, paraphraser("some-model", endpoint.url, "none"), 0)
  assert counts == {"rewritten": 20}
  assert all(text.startswith("Would you mind?") for text in requests(after))
  assert requests(before) == requests(rows())  # the rows that were given stay
  for old, new in zip(before, after, strict=True):
    assert new["extra_info"].pop("paraphrased")
    assert {**old, "prompt": None} == {**new, "prompt": None}
    assert old["prompt"][:-1] == new["prompt"][:-1]
  assert {request["model"] for request in endpoint.requests} == {"some-model"}
  assert len({request["style"] for request in endpoint.requests}) > 3
  assert sorted(request["request"] for request in endpoint.requests) == sorted(requests(before))


def test_rewrites_that_lose_or_add_a_value_are_not_kept(endpoint):
  lost = lambda asked: "Where is it?" if asked["keep"] else "Where is parcel 77?"
  endpoint.reply = lost
  before = rows()
  after, counts = paraphrased(before, paraphraser("m", endpoint.url, "none"), 0)
  assert requests(after) == requests(before) and counts == {"changed": 20}
  assert not any(row["extra_info"]["paraphrased"] for row in after)


def test_a_failing_paraphraser_leaves_the_request(endpoint):
  endpoint.reply = lambda asked: 400 if asked["keep"] else "  "
  before = rows(8)
  after, counts = paraphrased(before, paraphraser("m", endpoint.url, "none"), 0)
  assert requests(after) == requests(before) and counts == {"failed": 8}


@pytest.mark.parametrize(
  ("rewrite", "kept"),
  [
    ("where's ORD-1234 now, the one for Oslo", True),
    ("where's ord-1234 now, the one for OSLO", True),
    ("where's the one for Oslo", False),
    ("where's ORD-1234 for Oslo, ordered on 3 May", False),
    ('where\'s ORD-1234 for Oslo, the "blue" one', False),
    ("where's ORD-1234 for Oslo" + " please" * 60, False),
  ],
)
def test_what_a_rewrite_must_keep(rewrite, kept):
  assert keeps("track parcel ORD-1234, city Oslo", rewrite, ["ORD-1234", "Oslo"]) == kept


def test_script_writes_own_tasks_in_the_paraphrasers_words(endpoint, tmp_path):
  tools = tmp_path / "tools.json"
  tools.write_text(json.dumps([TOOL]))
  flags = [f"--tools={tools}", f"--out={tmp_path}", "--size=20", "--held_out_size=20"]
  model = [f"--paraphraser={endpoint.url}", "--paraphraser_model=m"]
  run = lambda flags: subprocess.run(
    [sys.executable, str(SCRIPT), *flags], capture_output=True, text=True
  )
  done = run([*flags, *model])
  assert done.returncode == 0, done.stderr
  assert "train: 20 rewritten" in done.stdout and "held_out: 20 rewritten" in done.stdout
  for part in ("train", "held_out"):
    tasks = load_tasks(tmp_path / f"{part}.jsonl")
    assert len(tasks) == 20
    assert all(task.request.startswith("Would you mind?") for task in tasks)
  for wrong in ([*flags, model[0]], [*flags, "--style=tools"], ["--size=20"]):
    done = run(wrong)
    assert done.returncode != 0 and "--" in done.stdout + done.stderr
