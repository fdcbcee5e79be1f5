"""Where a checkpoint lies: in a local folder, or on the Hugging Face hub (safetensors only)."""

import re
from pathlib import Path

CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "tokenizer.model",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
  "chat_template.json",
  "additional_chat_templates/*.jinja",
)
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def name_and_revision(model: str | Path) -> tuple[str, str | None]:
  """Parts `owner/name@revision`; a folder has no revision, whatever its path holds."""
  name, _, revision = str(model).partition("@")
  if Path(model).expanduser().is_dir() or not HUB_ID.fullmatch(name):
    return str(model), None
  return name, revision or None


def checkpoint_folder(model: str | Path, files: tuple[str, ...]) -> Path:
  """Returns the folder that holds a checkpoint's files, fetching them when they are on the hub.

  Interrupted downloads resume; `HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_TOKEN` count.

  Args:
    model: a folder, or a hub id `owner/name`, optionally `owner/name@revision`.
    files: name patterns of the files that are needed; all others stay on the hub.

  Raises:
    FileNotFoundError: there is no such folder or model, or it cannot be reached and is not cached.
    PermissionError: the hub wants a token, or an accepted licence, for this model.
  """
  folder = Path(model).expanduser()
  if folder.is_dir():
    return folder
  name, revision = name_and_revision(model)
  if not HUB_ID.fullmatch(name):
    raise FileNotFoundError(
      f"{str(model)!r} is neither a folder nor a hub id such as Qwen/Qwen2.5-0.5B-Instruct"
    )
  # Imported here so that local folders need neither the client nor its start-up time.
  import huggingface_hub
  from huggingface_hub import errors

  at = f" at revision {revision}" if revision else ""
  try:
    found = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(files))
  except errors.GatedRepoError as error:
    raise PermissionError(
      f"{name} is gated: accept its licence at https://huggingface.co/{name} and set HF_TOKEN"
    ) from error
  except errors.RevisionNotFoundError as error:
    raise FileNotFoundError(f"{name} has no revision {revision!r} on the hub") from error
  except errors.RepositoryNotFoundError as error:
    raise FileNotFoundError(
      f"there is no folder {str(model)!r} and no model {name!r} on the hub (a private one needs "
      "HF_TOKEN)"
    ) from error
  except errors.HfHubHTTPError as error:
    said = str(error).splitlines()[0]
    raise PermissionError(
      f"the hub refuses {name}{at} (is HF_TOKEN still valid?): {said}"
    ) from error
  # The last of these is a proxy that refuses, or a connection lost for good amid a download.
  except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError) as error:
    raise FileNotFoundError(
      f"{name}{at} is not in the local cache and the hub cannot be reached: connect once (with "
      f"HF_HUB_OFFLINE unset), or run `hf download {name}` elsewhere and pass the folder"
    ) from error
  return Path(found)
