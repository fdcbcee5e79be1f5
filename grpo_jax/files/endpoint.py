"""Asks a model behind an OpenAI-compatible endpoint, several questions at a time."""

import asyncio
import base64
import functools
import hashlib
import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from grpo_jax.files.atomic import write_text
from grpo_jax.files.redaction import HIDDEN, redacted

Read = TypeVar("Read")
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Failed:
  """Why a question has no answer.

  Attributes:
    said: the traceback, without secrets.
  """

  said: str


class Endpoint(Generic[Read]):
  """A model behind a URL, and how its replies are read.

  Args:
    who: asks, for messages, such as "the judge".
    model: by its name at the endpoint.
    read: what is wanted of a reply; a ValueError makes it count as failed.
    base_url: such as http://host:8000/v1; None takes OPENAI_BASE_URL. One that was recorded without
      its password takes that from there, too.
    api_key: None takes OPENAI_API_KEY; local servers accept any text.
    cache_dir: folder that keeps replies, by the content of the question.
    time_limit: for one request, seconds, even if the server keeps sending something.
    retries: further requests after one that failed.
    parallel: requests at a time.
    max_tokens: of a reply.
    temperature: of sampling.

  Raises:
    ValueError: the `openai` package is not installed, or the client cannot be made.
  """

  def __init__(
    self,
    who: str,
    model: str,
    read: Callable[[str], Read],
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    cache_dir: str | None = None,
    time_limit: float = 30.0,
    retries: int = 2,
    parallel: int = 8,
    max_tokens: int = 200,
    temperature: float = 0.0,
  ) -> None:
    try:
      import openai  # optional: only who asks needs it
    except ImportError:
      raise ValueError(f"{who} needs the openai package: pip install openai") from None
    url, headers = _without_credentials(_whole_url(who, base_url))
    key = api_key or os.environ.get("OPENAI_API_KEY", "")
    # What a server says about a request that it refuses may repeat them.
    self._secrets = [key, *(header.removeprefix("Basic ") for header in headers.values())]
    # Connections belong to the event loop of one batch, so each batch opens a client of its own.
    self._open_client = functools.partial(
      openai.AsyncOpenAI,
      base_url=url,
      api_key=key or "none",
      default_headers=headers,
      timeout=time_limit,
      max_retries=retries,
    )
    try:
      self._open_client()
    except openai.OpenAIError as error:
      said = redacted(str(error), self._secrets)
      raise ValueError(f"{who}'s client cannot be made: {said}") from None
    if cache_dir is not None:
      Path(cache_dir).mkdir(parents=True, exist_ok=True)
    self._read = read
    self._parallel = parallel
    self._patience = time_limit * (retries + 1)
    self._sampling = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
    self._cache_dir = cache_dir
    self._place = [base_url and redacted(base_url), model]

  def ask(self, questions: Sequence[Messages]) -> list[Read | Failed]:
    """What each question's reply reads as; a question that fails costs no other."""
    with ThreadPoolExecutor(1) as thread:  # a notebook's own thread already runs an event loop
      return thread.submit(asyncio.run, self._ask_all(questions)).result()

  async def _ask_all(self, questions: Sequence[Messages]) -> list[Read | Failed]:
    slots = asyncio.Semaphore(self._parallel)
    async with self._open_client() as client:
      return await asyncio.gather(*(self._ask_one(client, slots, q) for q in questions))

  async def _ask_one(
    self, client: Any, slots: asyncio.Semaphore, messages: Messages
  ) -> Read | Failed:
    kept = self._kept(messages)
    if kept is not None:
      with suppress(OSError, ValueError):  # not there, or cut off: ask, and write it anew
        return self._read(kept.read_text(encoding="utf-8"))
    try:
      async with slots:
        asked = client.chat.completions.create(messages=messages, **self._sampling)
        # The client's own limit is on silence: it does not end a reply that trickles.
        reply = await asyncio.wait_for(asked, self._patience)
      content = reply.choices[0].message.content or ""
      answer = self._read(content)
    except Exception:  # whatever the network, the server or the model did, the others go on
      return Failed(redacted(_encodable(traceback.format_exc()), self._secrets))
    if kept is not None:
      with suppress(OSError):  # a full disk costs the next run a request, not this run its life
        write_text(kept, _encodable(content))
    return answer

  def _kept(self, messages: Messages) -> Path | None:
    """The file of a reply, by the content of the question."""
    if self._cache_dir is None:
      return None
    key = json.dumps([*self._place, messages])
    return Path(self._cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _encodable(text: str) -> str:
  """A text with question marks for halves of surrogate pairs, which no file can hold."""
  return text.encode("utf-8", "replace").decode()


def _whole_url(who: str, url: str | None) -> str | None:
  """A URL with its password, which a run's record leaves out.

  Raises:
    ValueError: it comes from a record, and the environment does not hold it.
  """
  given = os.environ.get("OPENAI_BASE_URL") or None
  if url is None or HIDDEN not in url:
    return url or given
  if given is None or redacted(given) != url:
    raise ValueError(
      f"{who}'s URL was recorded as {url}, without its password; set OPENAI_BASE_URL to the "
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
