"""The evaluation script: files, tables, comparison with an earlier evaluation, and refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grpo_jax.models import DecoderConfig, init_params, save_pretrained
from grpo_jax.tasks import load_tokenizer
from grpo_jax.tasks.jsonl import write_jsonl
from grpo_jax.tasks.synthetic.splits import generate

SCRIPT = Path(__file__).parents[2] / "experiments" / "evaluate.py"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def bytes_only() -> PreTrainedTokenizerFast:
  """A tokenizer of 256 bytes and the end."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.decoder = decoders.ByteLevel()
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, chat_template=TEMPLATE, eos_token="<|end|>"
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A random policy of a few thousand parameters, and ten tasks."""
  folder = tmp_path_factory.mktemp("evaluate")
  tokenizer = bytes_only()
  config = DecoderConfig(
    vocab_size=257, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=8, tie_embeddings=True,
  )  # fmt: skip
  params = init_params(config, jax.random.key(0))
  save_pretrained(config, params, folder / "model", tokenizer=tokenizer)
  write_jsonl(generate(0, "unseen", 10), folder / "tasks.jsonl")
  return folder


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
  limits = ("--max_prompt_tokens=3000", "--max_completion_tokens=4", "--batch_prompts=10")
  command = [sys.executable, str(SCRIPT), f"--model={folder / 'model'}", *limits, *flags]
  return subprocess.run(command, capture_output=True, text=True)


def read_rows(path: Path) -> list[dict]:
  return [json.loads(row) for row in path.read_text().split("\n")[:-1]]


def test_script_scores_a_policy_and_compares_it_with_an_earlier_evaluation(folder):
  data = f"--data={folder / 'tasks.jsonl'}"
  first = run(folder, data, f"--out={folder / 'first.json'}", "--limit=8")
  assert first.returncode == 0, first.stderr
  summary = json.loads((folder / "first.json").read_text())
  wanted = {"reward_mean", "reward_ci95", "n", "by_behavior", "by_tool", "confusion", "error_rates"}
  assert wanted <= set(summary) and summary["n"] == 8
  rows = read_rows(folder / "first.completions.jsonl")
  assert [row["id"] for row in rows] == [f"unseen-{i:04d}" for i in range(8)]
  assert {"id", "prompt", "completion", "reward", "error"} <= set(rows[0])
  assert str(folder / "tasks.jsonl") in first.stdout
  assert first.stdout.startswith("8 tasks, computed in float32\n")
  assert summary["dtype"] == "float32"  # what `auto` is for a small model

  # The earlier one is read, not made again: a better "before" shows as a loss.
  (folder / "better").mkdir()
  (folder / "better" / "eval.json").write_text(json.dumps(summary | {"reward_mean": 1.0}))
  # JSON allows these three inside text; Python's splitlines takes them for ends of lines.
  better = [row | {"reward": 1.0, "completion": "one\u2028two\u2029three\x85four"} for row in rows]
  write_jsonl(better, folder / "better" / "completions.jsonl")
  compare = f"--compare_with={folder / 'better'}"
  flags = ("--limit=8", "--dtype=bfloat16", compare)
  second = run(folder, data, f"--out={folder / 'second'}", *flags)
  assert second.returncode == 0, second.stderr
  half = json.loads((folder / "second" / "eval.json").read_text())
  assert half["dtype"] == "bfloat16" and "computed in bfloat16" in second.stdout
  lost = 1 - half["reward_mean"]
  assert f"-{lost:.3f}" in second.stdout and "relative gain" in second.stdout

  other = run(folder, data, f"--out={folder / 'third'}", compare)
  assert other.returncode != 0 and "not of the same tasks" in other.stderr

  # A difference between two rewards would say nothing of the policies.
  other = run(folder, data, f"--out={folder / 'fourth'}", "--limit=8", compare, "--reward=binary")
  assert other.returncode != 0 and f"{compare} has another reward" in other.stderr
  assert not (folder / "fourth").exists()


READ = """
import runpy, sys
read = runpy.run_path(sys.argv[1])["read_evaluation"]
for out in sys.argv[2:]:
  try:
    print(len(read(out)[1]))
  except ValueError as error:
    print(error)
"""


def test_two_evaluations_in_one_folder_keep_their_own_completions(folder):
  data = f"--data={folder / 'tasks.jsonl'}"
  for name, limit in (("a.json", 4), ("b.json", 6)):
    assert run(folder, data, f"--out={folder / 'both' / name}", f"--limit={limit}").returncode == 0
  mine = (folder / "both" / "a.json").read_text()
  rows = read_rows(folder / "both" / "a.completions.jsonl")
  outs, said = [folder / "both" / "a.json", folder / "both" / "b.json"], ["4", "6"]

  def kept(name: str, completions: str, rows: list[dict], summary: str = mine) -> Path:
    """An evaluation in a folder of its own."""
    path = folder / f"kept{len(outs)}" / name
    write_jsonl(rows, path.parent / completions)
    path.write_text(summary)
    return path

  outs.append(kept("eval.json", "completions.jsonl", rows).parent)
  outs.append(kept("eval.json", "completions.jsonl", rows))  # the same said in another way
  outs.append(kept("a.json", "completions.jsonl", rows))  # as JSON files shared them before
  said += ["4", "4", "4"]
  for other, summary in (
    (read_rows(folder / "both" / "b.completions.jsonl"), mine),
    ([row | {"reward": 0.75} for row in rows], mine),
    ([row | {"tokens": 1} for row in rows], mine),
    (rows, '{"some": "other file"}'),
  ):
    outs.append(kept("a.json", "completions.jsonl", other, summary))
    completions = outs[-1].parent / "completions.jsonl"
    said.append(f"{completions} does not hold the completions of {outs[-1]}: evaluate again")
  command = [sys.executable, "-c", READ, str(SCRIPT), *map(str, outs)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.stdout.splitlines() == said, done.stderr


def test_script_refuses_what_it_cannot_read_in_one_sentence(folder):
  done = run(folder, f"--out={folder / 'none'}", "--data=tasks.jsonl")
  assert done.returncode != 0
  assert "evaluate: " in done.stderr and "tasks.jsonl" in done.stderr
  assert "Traceback" not in done.stderr and not (folder / "none").exists()


def test_a_call_in_another_form_counts_where_parse_says_so(tmp_path):
  # A policy that says f(x=1) to anything that ends with ">": its logits look at the last byte only.
  tokenizer, said = bytes_only(), ">f(x=1)<"
  config = DecoderConfig(
    vocab_size=257, hidden_size=257, intermediate_size=16, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=8, tie_embeddings=False,
  )  # fmt: skip
  params = jax.tree.map(jnp.zeros_like, init_params(config, jax.random.key(0)))
  params["final_norm"]["scale"] = jnp.ones(257)
  params["embed"]["embedding"] = jnp.eye(257)
  ids = [*tokenizer.encode(said)[:-1], tokenizer.eos_token_id]
  params["head"]["kernel"] = jnp.zeros((257, 257)).at[ids[:-1], ids[1:]].set(1.0)
  save_pretrained(config, params, tmp_path / "model", tokenizer=tokenizer)
  row = {
    "prompt": "call f with x = 1>",
    "tools": [{"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}],
    "reward_model": {"ground_truth": [{"name": "f", "arguments": {"x": 1}}]},
  }
  write_jsonl([row], tmp_path / "tasks.jsonl")
  flags = (f"--data={tmp_path / 'tasks.jsonl'}", "--max_completion_tokens=9")
  found = {}
  for mode in ("strict", "auto"):
    done = run(tmp_path, *flags, f"--out={tmp_path / mode}", f"--parse={mode}")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / mode / "completions.jsonl").read_text())
    found[mode] = row["completion"], row["reward"], row["error"]
  assert found == {"strict": ("f(x=1)", 0.0, "unparsable"), "auto": ("f(x=1)", 1.0, None)}

  # Two modes are not compared, and an evaluation that says none was made with `strict`.
  compare = f"--compare_with={tmp_path / 'strict'}"
  other = run(tmp_path, *flags, f"--out={tmp_path / 'other'}", "--parse=auto", compare)
  assert other.returncode != 0 and f"{compare} has another parse" in other.stderr
  summary = json.loads((tmp_path / "strict" / "eval.json").read_text())
  del summary["settings"]["parse"]
  (tmp_path / "strict" / "eval.json").write_text(json.dumps(summary))
  assert run(tmp_path, *flags, f"--out={tmp_path / 'again'}", compare).returncode == 0


def test_the_date_of_a_template_is_that_of_the_models_run(folder, tmp_path):
  shutil.copytree(folder / "model", tmp_path / "model")
  tokenizer = load_tokenizer(folder / "model")
  tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}|" + TEMPLATE
  tokenizer.save_pretrained(tmp_path / "model")
  shown = {}
  for date, flags in (
    ("2023-12-24", ["--template_date=2023-12-24"]),
    ("2022-02-03", []),
  ):
    if not flags:
      (tmp_path / "config.json").write_text(json.dumps({"template_date": date}))
    out = tmp_path / date
    done = run(tmp_path, f"--data={folder / 'tasks.jsonl'}", f"--out={out}", "--limit=1", *flags)
    assert done.returncode == 0, done.stderr
    shown[date] = json.loads((out / "completions.jsonl").read_text())["prompt"].split("|")[0]
    assert json.loads((out / "eval.json").read_text())["template_date"] == date
  assert shown == {"2023-12-24": "24 Dec 2023", "2022-02-03": "03 Feb 2022"}
  done = run(tmp_path, f"--data={folder / 'tasks.jsonl'}", "--template_date=today")
  assert done.returncode == 1 and "--template_date=today must be a day as" in done.stderr


def test_special_tokens_in_messages_are_text_where_it_is_asked_for(folder, tmp_path):
  row = {"prompt": "<|end|>" * 3, "reward_model": {"ground_truth": "Sorry, I can't."}}
  write_jsonl([row], tmp_path / "tasks.jsonl")
  flags = (f"--data={tmp_path / 'tasks.jsonl'}", f"--out={tmp_path}", "--max_prompt_tokens=3")
  done = run(folder, *flags)
  assert done.returncode == 0, done.stderr
  assert json.loads((tmp_path / "eval.json").read_text())["plain_user_text"] is False
  done = run(folder, *flags, "--plain_user_text")
  assert "1 of 1 prompts are longer than 3 tokens" in done.stderr and "has 21" in done.stderr
