"""Fetching from the hub, against a local stand-in that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from grpo_jax.files import hub

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
WEIGHTS = os.urandom(24_000_000)  # the client keeps whole pieces of 10 MB of a cut download
FILES = {
  "config.json": b'{"model_type": "qwen2"}',
  "model.safetensors": WEIGHTS,
  "pytorch_model.bin": b"pickle",
  "original/model.safetensors": b"another format",
  "tokenizer.json": b"{}",
}


class Hub(BaseHTTPRequestHandler):
  """One public model `owner/model`, a gated one, and nothing else."""

  def do_HEAD(self):
    self.respond(body=False)

  def do_GET(self):
    self.respond(body=True)

  def respond(self, body):
    state = self.server
    state.requests.append((self.command, self.path, self.headers))
    parts = self.path.partition("?")[0].strip("/").split("/")
    repo = parts[2:4] if parts[0] == "api" else parts[:2]
    if repo == ["owner", "gated"] and "Authorization" not in self.headers:
      return self.fail(401, "GatedRepo")
    if self.headers.get("Authorization") == "Bearer hf_expired":
      return self.fail(401, "")
    if repo not in (["owner", "model"], ["owner", "gated"]):
      return self.fail(401, "RepoNotFound")
    revision = parts[5] if parts[0] == "api" else parts[3]
    commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
    if commit is None:
      return self.fail(404, "RevisionNotFound")
    if parts[0] == "api" and parts[4] == "revision":
      names = [{"rfilename": name} for name in FILES]
      return self.send(json.dumps({"id": "/".join(repo), "sha": commit, "siblings": names}), body)
    if parts[0] == "api":
      tree = [
        {"type": "file", "path": n, "size": len(v), "oid": hashlib.sha1(v).hexdigest()}
        for n, v in FILES.items()
      ]
      return self.send(json.dumps(tree), body)
    name = "/".join(parts[4:])
    content = FILES.get(name)
    if content is None:
      return self.fail(404, "EntryNotFound")
    etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
    start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0]) if body else 0
    cut = None
    if body and name == "model.safetensors" and state.cuts:
      cut = state.cuts.pop()
    return self.send(content[start:], body, 206 if start else 200, etag, cut)

  def send(self, content, body, status=200, headers=None, cut=None):
    content = content.encode() if isinstance(content, str) else content
    self.send_response(status)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if body:
      self.wfile.write(content[:cut])
      self.server.sent += len(content[:cut])
    if cut is not None:
      self.close_connection = True

  def fail(self, status, code):
    self.send_response(status)
    self.send_header("X-Error-Code", code)
    self.send_header("Content-Length", "0")
    self.end_headers()

  def log_message(self, *_):
    """Keeps requests out of the test's output."""


@pytest.fixture
def server():
  httpd = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  httpd.requests, httpd.cuts, httpd.sent = [], [], 0
  thread = threading.Thread(target=httpd.serve_forever)
  thread.start()
  yield httpd
  httpd.shutdown()
  thread.join()
  httpd.server_close()


SCRIPT = """
import sys
from grpo_jax.files import hub
try:
  print(hub.checkpoint_folder(sys.argv[1], hub.CONFIG_FILES + hub.WEIGHT_FILES))
except OSError as error:
  print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def fetch(server, tmp_path):
  """Runs one fetch in a fresh process: huggingface_hub reads its environment when imported."""

  def run(model, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    kept |= {
      "HF_HOME": str(tmp_path / "home"),
      "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
      "HF_HUB_DISABLE_PROGRESS_BARS": "1",
      "HF_HUB_DISABLE_TELEMETRY": "1",
      "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
      [sys.executable, "-c", SCRIPT, model],
      env=kept | environment,
      capture_output=True,
      text=True,
      check=True,
    )
    return done.stdout.strip()

  return run


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_model_is_fetched_into_hf_home_and_found_again_offline(fetch, server, tmp_path):
  folder = tmp_path / "home/hub/models--owner--model/snapshots" / COMMITS["main"]
  assert fetch("owner/model") == str(folder)
  # Neither pickles nor other formats in subfolders are fetched.
  assert _names(folder) == ["config.json", "model.safetensors"]
  assert (folder / "model.safetensors").read_bytes() == WEIGHTS
  asked = len(server.requests)
  assert fetch("owner/model", HF_HUB_OFFLINE="1") == str(folder)
  assert len(server.requests) == asked


def test_a_revision_is_fetched_as_asked(fetch):
  assert fetch("owner/model@v1").endswith(COMMITS["v1"])
  assert fetch("owner/model@v9") == "FileNotFoundError: owner/model has no revision 'v9' on the hub"


def test_an_interrupted_download_resumes(fetch, server):
  server.cuts.append(15_000_000)
  folder = fetch("owner/model")
  assert folder.endswith(COMMITS["main"])
  ranges = [h["Range"] for method, path, h in server.requests if method == "GET" and "Range" in h]
  assert ranges
  assert server.sent < 1.3 * len(WEIGHTS)


def test_offline_without_a_cached_copy_says_what_to_do(fetch, server):
  said = fetch("owner/model", HF_HUB_OFFLINE="1")
  assert said == (
    "FileNotFoundError: owner/model is not in the local cache and the hub cannot be reached: "
    "connect once (with HF_HUB_OFFLINE unset), or run `hf download owner/model` elsewhere and pass "
    "the folder"
  )
  assert not server.requests


def test_an_unreachable_hub_says_the_same(fetch, server):
  refusing = f"http://127.0.0.1:{server.server_port}"  # it is no proxy
  for environment in (
    {"HF_ENDPOINT": "http://127.0.0.1:9"},
    {"HF_ENDPOINT": "https://hub.invalid", "HTTPS_PROXY": refusing},
  ):
    said = fetch("owner/model@v1", **environment)
    assert said.startswith(
      "FileNotFoundError: owner/model at revision v1 is not in the local cache"
    )
    assert said.count("\n") == 0


def test_a_token_that_has_expired_is_suspected_in_one_sentence(fetch):
  said = fetch("owner/model", HF_TOKEN="hf_expired")
  assert said.startswith(
    "PermissionError: the hub refuses owner/model (is HF_TOKEN still valid?): "
  )
  assert "401" in said
  assert said.count("\n") == 0


def test_an_unknown_model_is_named(fetch):
  said = fetch("owner/nothing")
  assert said.startswith("FileNotFoundError: there is no folder 'owner/nothing' and no model")


def test_a_gated_model_asks_for_the_token_and_uses_it(fetch, server):
  said = fetch("owner/gated")
  assert said.startswith("PermissionError: owner/gated is gated: accept its licence at")
  assert "HF_TOKEN" in said
  assert fetch("owner/gated", HF_TOKEN="hf_secret").endswith(COMMITS["main"])
  assert server.requests[-1][2]["Authorization"] == "Bearer hf_secret"


def test_a_folder_is_taken_as_it_is(tmp_path):
  assert hub.checkpoint_folder(str(tmp_path), hub.WEIGHT_FILES) == tmp_path


@pytest.mark.parametrize("model", ["nowhere", "./a/b", "/a/b", "a/b/c", "a/", "~/a", "a b/c", "@x"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(model):
  with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
    hub.checkpoint_folder(model, hub.CONFIG_FILES)
