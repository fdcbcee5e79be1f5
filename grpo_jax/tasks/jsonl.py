"""Reads tool tasks from files and data sets, and says line by line what is wrong with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from grpo_jax.files import json_text
from grpo_jax.files.atomic import replaced
from grpo_jax.tasks.rows import read_row, without_nulls
from grpo_jax.tasks.schema import ToolSpec, ToolTask

if TYPE_CHECKING:
  import pyarrow

MAX_ROW_BYTES = 16 * 2**20  # far above any prompt; a longer line is a broken file
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
    try:
      if isinstance(row, ValueError):
        raise row
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


def read_tools(path: str | Path) -> list[ToolSpec]:
  """The tool schemas of a JSON file, as `--tools` takes it.

  Args:
    path: a list, or an object with the list under `tools`.

  Raises:
    ValueError: it is neither, or one of the tools has no usable schema.
  """
  import jsonschema  # slow to import

  try:
    value = json_text.read_json(Path(path).read_text(encoding="utf-8"))
    value = value.get("tools") if isinstance(value, dict) else value
    if not isinstance(value, list):
      raise ValueError("expected a JSON list of tool schemas")
    tools = [ToolSpec.from_json(tool) for tool in value]
    for tool in tools:
      jsonschema.Draft202012Validator.check_schema(dict(tool.parameters))
  except (ValueError, jsonschema.SchemaError) as error:
    raise ValueError(f"--tools={path}: {str(error).splitlines()[0]}") from error
  return tools


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
  with replaced(path) as file:
    for row in rows:
      file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())


def _rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
  """Yields (place, row) with the place as it follows the source in messages, such as `:17`.

  In place of a row that cannot be read stands the error.
  """
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
      problem = f"longer than {MAX_ROW_BYTES >> 20} MiB; expected one task a line"
      yield f":{number}", ValueError(problem)
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
    yield "", ValueError(f"not UTF-8 at byte {error.start}")
    return
  position, line, counted = json_text.skip_whitespace(text, 0), 1, 0
  if not text.startswith("[", position):
    yield "", ValueError("expected a JSON list of tasks, or one task a line")
    return
  position = json_text.skip_whitespace(text, position + 1)
  while not text.startswith("]", position):
    line, counted = line + text.count("\n", counted, position), position
    try:
      row, end = json_text.decode_at(text, position, json_text.MAX_DATA_DEPTH)
    except json_text.Refused as refused:
      row, end = _not_a_task(refused), refused.end
    yield f":{line}", row
    if end == position:  # where the next task begins cannot be told
      return
    position = json_text.skip_whitespace(text, end)
    if text.startswith(",", position):
      position = json_text.skip_whitespace(text, position + 1)
    elif not text.startswith("]", position):
      yield f":{line}", ValueError('expected "," or "]" after this task')
      return
  end = json_text.skip_whitespace(text, position + 1)
  if end < len(text):
    line += text.count("\n", counted, end)
    yield f":{line}", ValueError("expected nothing after the list of tasks")


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
  import pyarrow.parquet  # comes with datasets; slow to import

  try:
    table = pyarrow.parquet.read_table(path)
    kind = pyarrow.struct(table.schema)
    rows = table.to_pylist()
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise DataError([f"{path}: not a readable parquet file: {error}"]) from error
  for number, row in enumerate(rows, 1):
    try:
      read = without_nulls(_json_decoded(row, kind))
    except ValueError as error:
      read = ValueError(f"a column of JSON: {error}")
    yield f":row {number}", read


def _json_decoded(value: Any, kind: pyarrow.DataType) -> Any:
  """Decodes the columns in which `datasets` keeps objects of differing keys as JSON text."""
  import pyarrow as pa

  if value is None:
    return None
  if isinstance(kind, pa.JsonType):
    return json_text.read_json(value)
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
    return json_text.read_json(line.decode())
  except UnicodeDecodeError as error:
    return ValueError(f"not UTF-8 at byte {error.start + 1} of the line")
  except json_text.Refused as refused:
    return _not_a_task(refused)


def _not_a_task(refused: json_text.Refused) -> ValueError:
  if refused.code in ("bad_json", "too_deep"):
    return ValueError(f"{refused}; expected one task as an object")
  return refused
