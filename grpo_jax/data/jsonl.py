"""Reads tool tasks from files and data sets, and says line by line what is wrong with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from grpo_jax.data.rows import read_row, without_nulls
from grpo_jax.schema import ToolTask

if TYPE_CHECKING:
  import pyarrow

MAX_ROW_BYTES = 16 * 2**20  # far above any prompt; a longer line is a broken file
MAX_DEPTH = 100  # later steps recurse in Python; no schema comes near it
SHOWN_ERRORS = 20
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


class DataError(ValueError):
  """Data that cannot be trained on; the message lists what is wrong, one line an error.

  Attributes:
    errors: all of it, not only what the message shows.
  """

  def __init__(self, errors: Sequence[str]):
    shown = list(errors[:SHOWN_ERRORS])
    if len(errors) > SHOWN_ERRORS:
      shown.append(f"and {len(errors) - SHOWN_ERRORS} more errors")
    super().__init__("\n".join(shown))
    self.errors = tuple(errors)


@dataclasses.dataclass(frozen=True)
class _Broken:
  """A row that could not even be read."""

  problem: str


def load_tasks(source: str | Path, split: str = "train") -> list[ToolTask]:
  """Reads and checks all tasks of a file or data set.

  Args:
    source: a `.jsonl`, `.json` or `.parquet` file, or whatever `datasets` loads: a folder or a hub
      id. Rows may be those of the data contract, of SageMaker AI or verl, or OpenAI chats.
    split: of a folder or hub id.

  Returns:
    At least one task, in the order of the data.

  Raises:
    DataError: anything is wrong with any row; the message shows the first 20 errors as
      `FILE:LINE: what is wrong and what was expected`.
  """
  tasks: list[ToolTask] = []
  errors: list[str] = []
  places: dict[str, str] = {}
  for place, row in _rows(str(source), split):
    where = f"{source}{place}"
    if isinstance(row, _Broken):
      errors.append(f"{where}: {row.problem}")
      continue
    try:
      task = read_row(row)
    except ValueError as error:
      errors.append(f"{where}: {error}")
      continue
    if task.id and task.id in places:
      errors.append(
        f"{where}: id {task.id!r} is taken by {source}{places[task.id]}; ids are unique"
      )
    places.setdefault(task.id, place)
    tasks.append(task)
  if not tasks and not errors:
    errors.append(f"{source}: holds no task")
  if errors:
    raise DataError(errors)
  return tasks


def data_sha256(tasks: Sequence[ToolTask]) -> str:
  """The SHA-256 of what the tasks say, in order, whether they come from a file or from memory."""
  digest = hashlib.sha256()
  for task in tasks:
    # Keys are not sorted: their order shows in rendered schemas.
    text = json.dumps(dataclasses.asdict(task), ensure_ascii=False, default=str)
    digest.update(text.encode() + b"\n")
  return digest.hexdigest()


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
  """Writes one row a line; a file of that name is replaced at once or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    with partial.open("w", encoding="utf-8", newline="\n") as file:
      for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def _rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
  """Yields (place, row) with the place as it follows the source in messages, such as `:17`."""
  path = Path(source)
  if path.is_file():
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
      raise DataError([f"{source}: expected a file ending in one of {', '.join(SUFFIXES)}"])
    if suffix == ".parquet":
      yield from _parquet_rows(path)
      return
    with path.open("rb") as file:
      yield from _json_rows(file) if suffix == ".json" else _line_rows(file)
    return
  if path.suffix.lower() in SUFFIXES or not (path.is_dir() or HUB_ID.fullmatch(source)):
    raise DataError([f"{source}: no such file or folder"])
  yield from _dataset_rows(source, split)


def _line_rows(file: BinaryIO) -> Iterator[tuple[str, Any]]:
  number = 0
  while line := file.readline(MAX_ROW_BYTES + 1):
    number += 1
    if len(line) > MAX_ROW_BYTES:
      while line and not line.endswith(b"\n"):
        line = file.readline(MAX_ROW_BYTES)
      yield (
        f":{number}",
        _Broken(f"longer than {MAX_ROW_BYTES >> 20} MiB; expected one task a line"),
      )
      continue
    line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    if line.strip():
      yield f":{number}", _parsed(line)


def _json_rows(file: BinaryIO) -> Iterator[tuple[str, Any]]:
  """The entries of one list; a `.json` file that holds JSON lines is read as such."""
  start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
  file.seek(0)
  if start.startswith(b"{"):
    yield from _line_rows(file)
    return
  try:
    text = file.read().decode("utf-8-sig")
  except UnicodeDecodeError as error:
    yield "", _Broken(f"not UTF-8 at byte {error.start}")
    return
  decoder = _decoder()
  position, line, counted = _after_space(text, 0), 1, 0
  if not text.startswith("[", position):
    yield "", _Broken("expected a JSON list of tasks, or one task a line")
    return
  position = _after_space(text, position + 1)
  while not text.startswith("]", position):
    line, counted = line + text.count("\n", counted, position), position
    try:
      row, position = decoder.raw_decode(text, position)
    except (ValueError, RecursionError) as error:
      yield f":{line}", _Broken(_json_problem(error))
      return
    yield f":{line}", _checked_text(row)
    position = _after_space(text, position)
    if text.startswith(",", position):
      position = _after_space(text, position + 1)
    elif not text.startswith("]", position):
      yield f":{line}", _Broken('expected "," or "]" after this task')
      return
  end = _after_space(text, position + 1)
  if end < len(text):
    line += text.count("\n", counted, end)
    yield f":{line}", _Broken("expected nothing after the list of tasks")


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
  import pyarrow.parquet  # comes with datasets; slow to import

  try:
    table = pyarrow.parquet.read_table(path)
    kind = pyarrow.struct(table.schema)
    rows = [_json_decoded(row, kind) for row in table.to_pylist()]
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise DataError([f"{path}: not a readable parquet file: {error}"]) from error
  for number, row in enumerate(rows, 1):
    yield f":row {number}", without_nulls(row)


def _json_decoded(value: Any, kind: pyarrow.DataType) -> Any:
  """Decodes the columns in which `datasets` keeps objects of differing keys as JSON text."""
  import pyarrow as pa

  if value is None:
    return None
  if isinstance(kind, pa.JsonType):
    return json.loads(value)
  if pa.types.is_struct(kind):
    return {field.name: _json_decoded(value[field.name], field.type) for field in kind}
  if pa.types.is_list(kind) or pa.types.is_large_list(kind):
    return [_json_decoded(entry, kind.value_type) for entry in value]
  return value


def _dataset_rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
  import datasets  # slow to import

  try:
    if Path(source, "dataset_info.json").exists() or Path(source, "dataset_dict.json").exists():
      data = datasets.load_from_disk(source)
      data = data[split] if isinstance(data, datasets.DatasetDict) else data
    else:
      data = datasets.load_dataset(source, split=split)
  except Exception as error:  # the library and its file systems raise dozens of types
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise DataError([f"{source}[{split}]: neither a file nor loadable: {reason}"]) from error
  for number, row in enumerate(data, 1):
    yield f"[{split}]:row {number}", without_nulls(row)


def _parsed(line: bytes) -> Any:
  try:
    return _checked_text(_decoder().decode(line.decode()))
  except UnicodeDecodeError as error:
    return _Broken(f"not UTF-8 at byte {error.start + 1} of the line")
  except (ValueError, RecursionError) as error:
    return _Broken(_json_problem(error))


def _decoder() -> json.JSONDecoder:
  return json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_constant=_no_constant)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  read = dict(pairs)
  if len(read) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f"the key {twice!r} stands twice in one object")
  return read


def _no_constant(name: str) -> Any:
  raise ValueError(f"{name} is no JSON number")


def _json_problem(error: Exception) -> str:
  if isinstance(error, json.JSONDecodeError):
    return f"not JSON: {error.msg} at column {error.colno}; expected one task as an object"
  if isinstance(error, RecursionError):
    return "nested too deeply; expected one task as an object"
  return str(error)


def _checked_text(row: Any) -> Any:
  """A lone surrogate is legal in JSON's escapes, but no text that can be tokenized or written."""
  try:
    json.dumps(row, ensure_ascii=False).encode()
  except UnicodeEncodeError:
    return _Broken("holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")
  if _deeper(row, MAX_DEPTH):
    return _Broken(f"nested deeper than {MAX_DEPTH}; expected one task as an object")
  return row


def _deeper(value: Any, levels: int) -> bool:
  inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  return levels < 0 or any(_deeper(entry, levels - 1) for entry in inner)


def _after_space(text: str, position: int) -> int:
  while position < len(text) and text[position] in " \t\r\n":
    position += 1
  return position
