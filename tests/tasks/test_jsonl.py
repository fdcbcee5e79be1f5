from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from grpo_jax.tasks.jsonl import DataError, data_sha256, load_tasks, write_jsonl
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.synthetic.splits import generate

ROWS = generate(0, "unseen", 20)
NATIVE = generate(0, "unseen", 20, style="tools")
GOOD = [json.dumps(row) for row in ROWS]
HALF = '[{"name": "f", "arguments": {"a": "\\ud800"}}]'  # whole only until it is decoded


def lines_file(tmp_path: Path, *lines: str | bytes) -> Path:
  path = tmp_path / "data.jsonl"
  path.write_bytes(b"\n".join(s.encode() if isinstance(s, str) else s for s in lines) + b"\n")
  return path


def errors_of(path: Path) -> list[str]:
  with pytest.raises(DataError) as caught:
    load_tasks(path)
  return str(caught.value).removeprefix("\n").split("\n")


@pytest.mark.parametrize("rows", [ROWS, NATIVE], ids=["system", "tools"])
def test_what_was_written_is_read_back(tmp_path, rows):
  write_jsonl(rows, tmp_path / "a" / "data.jsonl")
  tasks = load_tasks(tmp_path / "a" / "data.jsonl")
  in_memory = [ToolTask.from_row(row) for row in rows]
  assert tasks == in_memory
  assert data_sha256(tasks) == data_sha256(in_memory)
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["data.jsonl"]


def test_hash_changes_with_any_value_and_with_the_order():
  tasks = [ToolTask.from_row(row) for row in ROWS]
  assert data_sha256(tasks) != data_sha256(tasks[::-1])
  changed = json.loads(json.dumps(ROWS))
  changed[-1]["prompt"][1]["content"] += " "
  assert data_sha256(tasks) != data_sha256([ToolTask.from_row(row) for row in changed])


def test_every_bad_line_is_named_with_its_number(tmp_path):
  path = lines_file(
    tmp_path,
    GOOD[0],
    "",
    GOOD[1][:-5],
    '{"prompt": 5, "reward_model": {"ground_truth": "no"}}',
    GOOD[2].encode()[:40] + b"\xff\xfe" + GOOD[2].encode()[40:],
    GOOD[0],
    GOOD[3].replace("unseen-0003", "\\ud800"),
    '{"prompt": "a", "prompt": "b", "reward_model": {"ground_truth": "no"}}',
    '{"prompt": "a", "reward_model": {"ground_truth": NaN}}',
    "[" * 100_000,
    '{"prompt": "a", "reward_model": {"ground_truth": ' + "9" * 5000 + "}}",
    '{"prompt": "a", "tools": ' + "[" * 900 + "]" * 900 + "}",
    json.dumps({"prompt": "a", "reward_model": {"ground_truth": HALF}}),
  )
  errors = errors_of(path)
  expected = {
    3: "not JSON: ",
    4: '"prompt" must be a non-empty list',
    5: "not UTF-8 at byte 41 of the line",
    6: f"id 'unseen-0000' is taken by {path}:1",
    7: "half of a surrogate pair",
    8: "the key 'prompt' stands twice in one object",
    9: "NaN is no JSON number",
    10: "nested deeper than 100",
    11: "a number of more than 64 digits",
    12: "nested deeper than 100",
    13: "half of a surrogate pair",
  }
  assert len(errors) == len(expected)
  for error, (line, problem) in zip(errors, expected.items(), strict=True):
    assert error.startswith(f"{path}:{line}: ") and problem in error


def test_a_line_of_100_megabytes_is_named_and_never_held_in_memory(tmp_path):
  path = lines_file(tmp_path, GOOD[0], b"x" * 100_000_000, '{"a": 1}', GOOD[1])
  tracemalloc.start()
  errors = errors_of(path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert errors[0] == f"{path}:2: longer than 16 MiB; expected one task a line"
  assert errors[1].startswith(f"{path}:3: ") and len(errors) == 2
  assert peak < 60e6


def test_the_first_twenty_errors_are_shown_and_the_rest_counted(tmp_path):
  path = lines_file(tmp_path, *["{}"] * 33)
  errors = errors_of(path)
  assert len(errors) == 21 and errors[-1] == "and 13 more errors"
  with pytest.raises(DataError) as caught:
    load_tasks(path)
  assert len(caught.value.errors) == 33


def test_a_json_list_is_read_with_the_line_of_each_task(tmp_path):
  path = tmp_path / "data.json"
  path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8-sig")
  assert load_tasks(path) == [ToolTask.from_row(row) for row in ROWS]
  path.write_text(f'[\n{GOOD[0]},\n\n{{"prompt": 5}},\n{GOOD[1]}\n]')
  assert errors_of(path)[0].startswith(f"{path}:4: ")
  path.write_text(f"[\n{GOOD[0]}\n{GOOD[1]}]")
  assert errors_of(path) == [f'{path}:2: expected "," or "]" after this task']
  path.write_text(f"[\n{GOOD[0]},\n{GOOD[1][:50]}")
  assert errors_of(path)[0].startswith(f"{path}:3: not JSON")
  path.write_text(f"[{GOOD[0]}]\n[{GOOD[1]}]")
  assert errors_of(path) == [f"{path}:2: expected nothing after the list of tasks"]
  path.write_text("7")
  assert errors_of(path) == [f"{path}: expected a JSON list of tasks, or one task a line"]
  path.write_text("\n".join(GOOD))
  assert len(load_tasks(path)) == 20


def test_a_task_of_a_json_list_that_is_read_and_refused_does_not_hide_the_next(tmp_path):
  path = tmp_path / "data.json"
  surrogate = GOOD[0].replace("unseen-0000", "\\ud800")
  path.write_text(f'[\n{surrogate},\n{{"prompt": {"[" * 200 + "]" * 200}}},\n{{"prompt": 5}}\n]')
  errors = errors_of(path)
  assert [error.split(": ")[0] for error in errors] == [f"{path}:{line}" for line in (2, 3, 4)]
  assert "half of a surrogate pair" in errors[0] and "nested deeper than 100" in errors[1]


TOOL = '{"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}'
CALL = '[{"name": "f", "arguments": {"a": "x"}}]'
BROKEN_TEXTS = [
  (lambda text: text.replace('"a": "x"', '"a": "\\ud800"'), "half of a surrogate pair"),
  (lambda text: text.replace('"a": "x"', '"a": "x", "a": "y"'), "the key 'a' stands twice"),
  (lambda text: text.replace('"a": "x"', '"a": NaN'), "NaN is no JSON number"),
  (lambda text: text.replace('"a": "x"', '"a": 1e999'), "a number of more than 64 digits"),
  (lambda text: text.replace('"x"', "[" * 100 + "]" * 100), "nested deeper than 100"),
]


def row_of(ground_truth: object = CALL, **fields: object) -> dict:
  row = {"prompt": "x", "tools": f"[{TOOL}]", "reward_model": {"ground_truth": ground_truth}}
  return {**row, **fields}


@pytest.mark.parametrize(("broken", "problem"), BROKEN_TEXTS, ids=lambda x: str(x)[:8])
@pytest.mark.parametrize("file", ["data.jsonl", "data.parquet"])
def test_json_inside_text_is_read_as_strictly_as_the_row(tmp_path, file, broken, problem):
  call = broken(CALL)
  arguments = call[call.index('{"a"') : -2]
  reward_model = json.dumps({"ground_truth": "f"})[:-1] + f', "calls": {call}}}'
  chat = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
  user = {"role": "user", "content": "x"}
  rows = [
    (row_of(call), "ground_truth"),
    (row_of([{"name": "f", "arguments": arguments}]), "arguments"),
    (row_of(reward_model=reward_model), "reward_model"),
    (row_of(tools=f'[{{"name": "f", "example": {arguments}}}]'), "tools"),
    (row_of(tools=[f'{{"name": "f", "example": {arguments}}}']), "tools"),
    (row_of(extra_info=arguments), "extra_info"),
    (row_of(extra_info={"possible_answers": call}), "extra_info.possible_answers"),
    (row_of(prompt=call), "prompt"),
    ({"messages": [user, chat]}, "arguments"),
    ({"messages": call}, "messages"),
  ]
  for row, name in rows:
    path = tmp_path / file
    if path.suffix == ".jsonl":
      write_jsonl([row], path)
    else:
      pa = pytest.importorskip("pyarrow")
      pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist([row]), path)
    (error,) = errors_of(path)
    assert f'"{name}" is JSON text that cannot be read: ' in error and problem in error


@pytest.mark.parametrize(("broken", "problem"), BROKEN_TEXTS, ids=lambda x: str(x)[:8])
def test_tools_in_a_system_message_are_read_as_strictly_as_the_row(tmp_path, broken, problem):
  tool = broken(TOOL.replace('{"type": "string"}', '{"type": "string", "default": {"a": "x"}}'))
  system = {"role": "system", "content": f"Your tools:\n{tool}"}
  user = {"role": "user", "content": "x"}
  path = lines_file(tmp_path, json.dumps({**row_of(prompt=[system, user]), "tools": None}))
  (error,) = errors_of(path)
  assert "the tool schemas in the system message: " in error and problem in error
  # JSON that holds no tool is only text.
  system["content"] = f"Such as {broken(CALL)}.\n{TOOL}"
  write_jsonl([{**row_of(prompt=[system, user]), "tools": None}], path)
  assert [tool.name for tool in load_tasks(path)[0].tools] == ["f"]


def test_a_json_column_of_parquet_is_read_as_strictly_as_a_line(tmp_path):
  pa = pytest.importorskip("pyarrow")
  texts = ['{"ground_truth": "no"}', '{"ground_truth": "no", "ground_truth": "yes"}']
  column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts))
  table = pa.table({"prompt": ["x", "x"], "reward_model": column})
  pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "data.parquet")
  (error,) = errors_of(tmp_path / "data.parquet")
  assert error.startswith(f"{tmp_path}/data.parquet:row 2: ")
  assert "the key 'ground_truth' stands twice in one object" in error


@pytest.mark.parametrize("text", ["NaN", "[Sorry] I cannot.", '{"a": 1, "a": 2} is what?', "1e999"])
def test_a_prompt_or_an_answer_that_is_no_json_list_stays_text(tmp_path, text):
  path = tmp_path / "data.jsonl"
  write_jsonl([{"prompt": text, "reward_model": {"ground_truth": "Sorry, no."}}], path)
  assert load_tasks(path)[0].request == text


@pytest.mark.parametrize("rows", [ROWS, NATIVE], ids=["system", "tools"])
def test_parquet_and_datasets_give_the_tasks_of_the_jsonl_file(tmp_path, monkeypatch, rows):
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  wanted = [ToolTask.from_row(row) for row in rows]
  folder = tmp_path / "folder"
  write_jsonl(rows, folder / "train.jsonl")
  assert load_tasks(folder) == wanted
  data = datasets.load_dataset("json", data_files=str(folder / "train.jsonl"), split="train")
  data.to_parquet(tmp_path / "data.parquet")
  data.save_to_disk(tmp_path / "saved")
  assert load_tasks(tmp_path / "data.parquet") == wanted
  assert load_tasks(tmp_path / "saved") == wanted
  with pytest.raises(DataError, match=r"folder\[nosplit\]: neither a file nor loadable"):
    load_tasks(folder, split="nosplit")


def test_parquet_with_struct_columns_drops_the_nulls_of_other_rows(tmp_path):
  pa = pytest.importorskip("pyarrow")
  import pyarrow.parquet

  table = pa.Table.from_pylist(NATIVE)  # every tool's struct has the arguments of all tools
  pyarrow.parquet.write_table(table, tmp_path / "verl.parquet")
  tasks = load_tasks(tmp_path / "verl.parquet")
  for task, row in zip(tasks, NATIVE, strict=True):
    wanted = ToolTask.from_row(row)
    assert task.calls == wanted.calls and task.messages == wanted.messages
    for tool, other in zip(task.tools, wanted.tools, strict=True):
      assert tool.properties == other.properties and tool.required == other.required
  bad = pa.Table.from_pylist([{"prompt": "a", "reward_model": {"ground_truth": ""}}])
  pyarrow.parquet.write_table(bad, tmp_path / "bad.parquet")
  assert errors_of(tmp_path / "bad.parquet")[0].startswith(f"{tmp_path}/bad.parquet:row 1: ")
  (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
  assert "not a readable parquet file" in errors_of(tmp_path / "torn.parquet")[0]


def test_a_file_that_is_missing_empty_or_unknown_is_refused(tmp_path):
  assert errors_of(tmp_path / "none.jsonl") == [f"{tmp_path}/none.jsonl: no such file or folder"]
  assert errors_of(tmp_path / "none") == [f"{tmp_path}/none: no such file or folder"]
  assert errors_of(lines_file(tmp_path, "")) == [f"{tmp_path}/data.jsonl: holds no task"]
  (tmp_path / "data.csv").write_text("a,b")
  assert "expected a file ending in one of .jsonl" in errors_of(tmp_path / "data.csv")[0]


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
  path = tmp_path / "data.jsonl"
  path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(GOOD[:3]).encode())
  assert len(load_tasks(path)) == 3


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / "data.jsonl"
  write_jsonl(ROWS[:1], path)
  before = path.read_bytes()
  with pytest.raises(TypeError):
    write_jsonl([{"prompt": object()}], path)
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
