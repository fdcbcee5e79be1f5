"""Results folders: what is kept of a run, doing it again, and what counts as the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax import results
from grpo_jax.config import GRPOConfig, RunConfig, config_of
from grpo_jax.models.tensor_file import TensorFile
from grpo_jax.results import collect, command_of, compare_with, read_commands, redirected
from grpo_jax.rewards import RewardConfig
from grpo_jax.sampling import SamplingConfig
from grpo_jax.train import train

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "experiments" / "reproduce.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Two steps of the embedded policy with adapters."""
  return train(
    RunConfig(
      run_dir=str(tmp_path_factory.mktemp("first") / "run"),
      reward_config=RewardConfig(group_size=4),
      grpo=GRPOConfig(
        sampling=SamplingConfig(group_size=4, max_tokens=24), micro_batch_prompts=2,
        aggregation="token",
      ),
      steps=2,
      prompts_per_step=2,
      max_prompt_tokens=448,
      learning_rate=1e-3,
      lora_rank=2,
      eval_limit=6,
    )
  )  # fmt: skip


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
  """Its results folder."""
  path = tmp_path_factory.mktemp("results") / "tiny"
  collect(run, path, root=ROOT)
  return path


def reproduce(*arguments):
  command = [sys.executable, str(SCRIPT), *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def again(folder, tmp_path_factory):
  """The run that the script makes of the results folder, and what it says."""
  run_dir = tmp_path_factory.mktemp("second") / "run"
  return run_dir, reproduce(folder, f"--run_dir={run_dir}")


@pytest.fixture
def copied(folder, tmp_path):
  """A copy of the results folder, to change."""
  return Path(shutil.copytree(folder, tmp_path / "copied"))


def change(path, *keys, value):
  """Sets an entry of a JSON file to a value, or to what a function makes of it."""
  content = json.loads(path.read_text())
  inner = content
  for key in keys[:-1]:
    inner = inner[key]
  inner[keys[-1]] = value(inner[keys[-1]]) if callable(value) else value
  path.write_text(json.dumps(content))


def change_step(folder, step, name, value):
  path = folder / "metrics.jsonl"
  lines = path.read_text().splitlines()
  lines[step] = json.dumps(json.loads(lines[step]) | {name: value})
  path.write_text("\n".join(lines) + "\n")


def verdicts(found):
  return {(row.file, row.what): row.verdict for row in found.rows if not row.fine}


def test_a_results_folder_holds_what_belongs_there(run, folder):
  names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
  plots = {path.name for path in run.glob("*.png")}
  assert plots and names == plots | {
    "command.txt", "config.json", "metrics.jsonl", "eval_base.json", "eval_final.json",
    "report.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
  }  # fmt: skip
  dtypes = TensorFile(folder / "adapter/adapter_model.safetensors").dtypes
  assert set(dtypes.values()) == {"BF16"}
  texts = [
    path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".txt", ".md")
  ]
  assert not [text for text in texts if str(ROOT) in text or str(run.parent) in text]
  assert json.loads((folder / "config.json").read_text())["run_dir"] == "runs/run"
  (words,) = read_commands((folder / "command.txt").read_text())
  assert words[:2] == ["python", "experiments/train_grpo.py"]
  assert {"--steps=2", "--lora_rank=2", "--group_size=4", "--learning_rate=0.001"} < set(words)
  assert not [word for word in words if word.startswith(("--model=", "--seed=", "--beta1="))]


def test_a_second_run_is_the_same_to_the_bit(folder, again):
  run_dir, done = again
  assert done.returncode == 0, done.stderr[-3000:]
  assert "\nbit for bit\n" in done.stdout
  assert f"{folder} is reproduced by {run_dir}" in done.stdout
  found = compare_with(folder, run_dir, root=ROOT)
  assert found.reproduced and not found.elsewhere
  assert {(row.file, row.what) for row in found.rows} == {
    ("config.json", "settings"), ("metrics.jsonl", "steps"), ("adapter", "weights"),
    ("eval_base.json", "seen reward"), ("eval_base.json", "unseen reward"),
    ("eval_base.json", "everything"), ("eval_final.json", "seen reward"),
    ("eval_final.json", "unseen reward"), ("eval_final.json", "everything"),
  }  # fmt: skip
  assert {row.verdict for row in found.rows} == {"equal"}


def test_what_differs_is_named(copied, again):
  loss = json.loads((copied / "metrics.jsonl").read_text().splitlines()[1])["loss"]
  change_step(copied, 1, "loss", loss + 1e-7)
  change_step(copied, 0, "seconds/sample", 1e9)  # times are nobody's fault
  change(copied / "eval_final.json", "unseen", "reward_mean", value=lambda mean: mean + 0.01)
  change(copied / "eval_base.json", "seen", "truncated", value=2.0)
  found = compare_with(copied, again[0], root=ROOT)
  assert not found.reproduced and not found.elsewhere
  assert verdicts(found) == {
    ("metrics.jsonl", "steps"): f"DIFFERENT: step 1, loss ({loss + 1e-7} then, {loss} now)",
    ("eval_final.json", "unseen reward"): "DIFFERENT: by -1.0e-02",
    ("eval_final.json", "everything"): "DIFFERENT: unseen.reward_mean",
    ("eval_base.json", "everything"): "DIFFERENT: seen.truncated",
  }


def test_other_adapters_steps_settings_and_evaluations_are_named(copied, again):
  weights = copied / "adapter/adapter_model.safetensors"
  content = bytearray(weights.read_bytes())
  content[-1] ^= 64
  weights.write_bytes(content)
  text = (copied / "metrics.jsonl").read_text()
  (copied / "metrics.jsonl").write_text(text.splitlines(keepends=True)[0])
  change(copied / "config.json", "learning_rate", value=1.0)
  (copied / "eval_base.json").rename(copied / "eval_other.json")
  found = verdicts(compare_with(copied, again[0], root=ROOT))
  assert found["metrics.jsonl", "steps"] == "DIFFERENT: not as many steps"
  assert found["config.json", "settings"] == "DIFFERENT: learning_rate (1.0 then, 0.001 now)"
  assert found["eval_other.json", ""] == f"DIFFERENT: {again[0]} has none"
  assert found["adapter", "weights"].startswith("DIFFERENT: base_model.model.model.layers.4")


def test_elsewhere_a_mean_has_to_lie_within_its_interval(copied, again):
  change(copied / "config.json", "packages", "jaxlib", value="0.1")
  change_step(copied, 1, "loss", 5.0)
  for split, mean, interval in (("seen", 0.9, [-1.0, 2.0]), ("unseen", 0.9, [-1.0, 2.0])):
    change(copied / "eval_final.json", split, "reward_mean", value=mean)
    change(copied / "eval_final.json", split, "reward_ci95", value=interval)
  found = compare_with(copied, again[0], root=ROOT)
  jaxlib = json.loads((again[0] / "config.json").read_text())["packages"]["jaxlib"]
  assert found.elsewhere == (f"jaxlib (0.1 then, {jaxlib} now)",)
  assert found.reproduced
  words = {row.verdict for row in found.rows if row.file == "eval_final.json"}
  assert words == {"inside of the interval"}

  change(copied / "eval_final.json", "unseen", "reward_ci95", value=[0.8, 1.0])
  found = compare_with(copied, again[0], root=ROOT)
  assert verdicts(found) == {
    ("eval_final.json", "unseen reward"): "DIFFERENT: outside of the interval"
  }


@pytest.mark.parametrize(
  ("keys", "value", "words"),
  [
    (("processor",), "another, 2 cores", "processor (another, 2 cores then, "),
    (("processor",), "", "processor (not recorded then, "),
    (("devices",), ["gpu:NVIDIA H100"], "devices (['gpu:NVIDIA H100'] then, "),
    (("python",), "3.5.1", "python (3.5 then, "),
    (("version",), "0.1.0", "version (0.1 then, "),
  ],
)
def test_another_place_is_said_to_be_one(copied, again, keys, value, words):
  change(copied / "config.json", *keys, value=value)
  (found,) = compare_with(copied, again[0], root=ROOT).elsewhere
  assert found.startswith(words)


def test_the_script_ends_with_1_where_something_differs(copied, again):
  change_step(copied, 1, "loss", 5.0)
  done = reproduce(copied, f"--run_dir={again[0]}")  # finished: it only evaluates once more
  assert done.returncode == 1, done.stderr[-3000:]
  assert "DIFFERENT: step 1, loss (5.0 then, " in done.stdout
  assert f"{copied} is NOT reproduced by {again[0]}" in done.stdout


def test_the_script_collects(run, tmp_path):
  commands = tmp_path / "commands"
  text = "# By hand\npython experiments/train_grpo.py --preset=tiny --model=runs/models/x"
  commands.write_text(text + " \\\n  --run_dir=runs/ours\n")
  change(shutil.copytree(run, tmp_path / "run") / "config.json", "model", value="/models/x")
  described = tmp_path / "run" / "adapter" / "adapter_config.json"
  change(described, "base_model_name_or_path", value="/models/x")
  run = tmp_path / "run"
  out = tmp_path / "results" / "mine"
  warm = run / "adapter"
  done = reproduce(run, f"--collect={out}", f"--commands={commands}", f"--warm={warm}")
  assert done.returncode == 0, done.stderr[-3000:]
  assert (out / "command.txt").read_text() == commands.read_text()
  found = json.loads((out / "config.json").read_text())
  assert (found["model"], found["run_dir"]) == ("runs/models/x", "runs/ours")
  for name in ("adapter", "adapter_warm"):
    found = json.loads((out / name / "adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == "runs/models/x"
  kept = [out / name / "adapter_model.safetensors" for name in ("adapter", "adapter_warm")]
  assert all(path.is_file() and str(path) in done.stdout for path in kept)
  assert [path.name for path in out.parent.iterdir()] == ["mine"]
  done = reproduce(run, f"--collect={out}")
  assert done.returncode == 1 and f"{out} is there already" in done.stderr


def test_what_does_not_belong_into_results_is_refused(run, tmp_path, monkeypatch):
  out = tmp_path / "results" / "mine"
  attempt = lambda run=run, **options: collect(run, out, root=ROOT, **options)
  with pytest.raises(ValueError, match="is neither a run folder nor one of results"):
    attempt(tmp_path)
  unfinished = shutil.copytree(run, tmp_path / "run")
  (unfinished / "eval_final.json").unlink()
  with pytest.raises(ValueError, match=r"is not finished: it has no eval_final\.json"):
    attempt(unfinished)
  elsewhere = shutil.copytree(run, tmp_path / "elsewhere")
  change(elsewhere / "config.json", "data", value="/data/x")
  with pytest.raises(ValueError, match=r"/data/x in .*config\.json is a path of this machine"):
    attempt(elsewhere)
  size = 2 * (run / "adapter/adapter_model.safetensors").stat().st_size // 4
  monkeypatch.setattr(results, "ADAPTER_BYTES", size // 2)
  with pytest.raises(ValueError, match=r"adapter takes 0\.\d MB in bfloat16, 0 at most"):
    attempt()
  monkeypatch.setattr(results, "ADAPTER_BYTES", size)
  monkeypatch.setattr(results, "ALL_ADAPTERS_BYTES", size + size // 2)
  with pytest.raises(ValueError, match=r"would take .* at most: keep fewer"):
    attempt(warm=run / "adapter")
  assert not (tmp_path / "results").exists() or not list((tmp_path / "results").iterdir())


def test_the_command_of_a_record_gives_its_settings():
  config = RunConfig(
    run_dir="runs/a b", data="tasks.jsonl", eval_data=(("one", "1.jsonl"), ("two", "2.jsonl")),
    plain_user_text=True, track=("tensorboard", "mlflow"), lora_rank=4, lora_targets="q,v",
    grpo=GRPOConfig(sampling=SamplingConfig(top_p=0.9)),
  )  # fmt: skip
  record = json.loads(json.dumps(config, default=vars))
  assert config_of(record) == config
  assert read_commands(command_of(record)) == [
    [
      "python", "experiments/train_grpo.py", "--run_dir=runs/a b", "--data=tasks.jsonl",
      "--eval_data=one=1.jsonl", "--eval_data=two=2.jsonl", "--top_p=0.9",
      "--plain_user_text=True", "--lora_rank=4", "--lora_targets=q,v",
      "--track=tensorboard,mlflow",
    ]
  ]  # fmt: skip


COMMANDS = """
# A warm start, then GRPO from there.
python experiments/fetch_model.py --name=smollm2-135m
python experiments/train_grpo.py --steps=3 --run_dir=runs/warm

python experiments/train_grpo.py --init=runs/warm/adapter --template_date=2026-01-02 \\
  --run_dir=runs/then --eval_data=warm=runs/warm/rows.jsonl  # as it was
python experiments/evaluate.py --adapter=runs/then/adapter --out=runs/then/eval_more.json
"""


def test_commands_get_run_folders_of_their_own():
  commands, moved = redirected(read_commands(COMMANDS), Path("/new/run"), "2026-03-04")
  assert moved == {"runs/warm": "/new/run-1", "runs/then": "/new/run"}
  assert [words[2:] for words in commands] == [
    ["--name=smollm2-135m"],
    ["--steps=3", "--template_date=2026-03-04", "--run_dir=/new/run-1"],
    [
      "--init=/new/run-1/adapter", "--template_date=2026-01-02",
      "--eval_data=warm=/new/run-1/rows.jsonl", "--run_dir=/new/run",
    ],
    ["--adapter=/new/run/adapter", "--out=/new/run/eval_more.json"],
  ]  # fmt: skip
  assert moved == redirected(read_commands(COMMANDS), Path("/new/run"), "")[1]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("rm -rf runs", "rm -rf runs: expected python experiments/SCRIPT.py"),
    ("python -c 1", "python -c 1: expected python experiments/SCRIPT.py"),
    ("python experiments/evaluate.py", "none of the commands is python experiments/train_grpo.py"),
    ("# nothing", "none of the commands"),
  ],
)
def test_only_commands_of_the_repository_are_run(text, message):
  with pytest.raises(ValueError, match=message):
    read_commands(text)
