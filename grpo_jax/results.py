"""Results folders: what is kept of a run, so that anyone can do it again and see what comes out.

`experiments/results/NAME` holds command.txt, config.json, metrics.jsonl, eval_*.json, report.md and
its plots, and adapters in PEFT's format, bfloat16.
"""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from grpo_jax.config import RunConfig, changed_settings, config_of
from grpo_jax.files.atomic import write_text
from grpo_jax.models.lora import CONFIG_FILE, WEIGHTS_FILE
from grpo_jax.models.tensor_file import TensorFile, write_tensors
from grpo_jax.replay import TIMES, minor
from grpo_jax.runs.folder import whole_lines
from grpo_jax.settings import settings_of

COMMAND = "command.txt"
ADAPTERS = ("adapter", "adapter_warm")
ADAPTER_BYTES, ALL_ADAPTERS_BYTES = 20_000_000, 60_000_000
TRAIN = "experiments/train_grpo.py"
_TEXTS = ("config.json", "metrics.jsonl", "report.md", "eval_*.json")
_SLICES = ("by_behavior", "by_tool")  # too few tasks each for their own intervals to say much


def command_of(record: Mapping[str, Any]) -> str:
  """The command that trains with the settings of a record: those that are not the defaults."""
  config, words = config_of(record), ["python", TRAIN]
  for name, setting in settings_of(RunConfig).items():
    value: Any = config
    for part in setting.path:
      value = None if value is None else getattr(value, part)
    if value in (None, setting.default):
      continue
    several = setting.many and setting.type is tuple
    words += [f"--{name}={setting.text(one)}" for one in (value if several else [value])]
  return shlex.join(words) + "\n"


def read_commands(text: str) -> list[list[str]]:
  """The commands of a command.txt, as words; lines that end with a backslash go on.

  Raises:
    ValueError: a line that is not `python experiments/SCRIPT.py ...`, or none that trains.
  """
  lines = text.replace("\\\n", " ").splitlines()
  commands = [words for line in lines if (words := shlex.split(line, comments=True))]
  for words in commands:
    if words[0] != "python" or not words[1:] or not words[1].startswith("experiments/"):
      raise ValueError(f"{shlex.join(words)}: expected python experiments/SCRIPT.py and its flags")
  if not any(words[1] == TRAIN for words in commands):
    raise ValueError(f"none of the commands is python {TRAIN}")
  return commands


def collect(
  run_dir: Path, folder: Path, *, root: Path, commands: str = "", warm: Path | None = None
) -> None:
  """Makes a results folder out of a finished run; it appears when it is whole.

  Its texts name no path of this machine: where the record and the command call one differently,
  the command's word is taken.

  Args:
    run_dir: the run folder; only read.
    folder: the folder to make.
    root: of the repository.
    commands: what leads to the run, line by line, from the root; empty: what its record says.
    warm: a folder of adapters that the run began with, to keep as adapter_warm/.

  Raises:
    ValueError: the run is not finished, the folder is there, adapters are too large, or a path is
      left that only this machine has.
  """
  if folder.exists():
    raise ValueError(f"{folder} is there already: remove it or choose another name")
  record = _read_record(run_dir)
  if not (run_dir / "eval_final.json").is_file():
    raise ValueError(f"{run_dir} is not finished: it has no eval_final.json")
  commands = commands or command_of(record)
  rename = _portable(record, read_commands(commands), root)
  if foreign := re.search(r'"(/[^"]+)"', json.dumps(rename(record))):
    raise ValueError(
      f"{foreign[1]} in {run_dir / 'config.json'} is a path of this machine: give --commands with "
      "another"
    )
  found = zip(ADAPTERS, (run_dir / "adapter", warm), strict=True)
  adapters = {name: path for name, path in found if path and path.is_dir()}
  _check_sizes(adapters, folder.parent)
  staged = folder.with_name(f".{folder.name}.partial")
  shutil.rmtree(staged, ignore_errors=True)  # of one that was killed
  try:
    staged.mkdir(parents=True)
    write_text(staged / COMMAND, rename(commands))
    for path in (path for pattern in _TEXTS for path in run_dir.glob(pattern)):
      write_text(staged / path.name, rename(path.read_text(encoding="utf-8")))
    for path in run_dir.glob("*.png"):
      shutil.copyfile(path, staged / path.name)
    for name, source in adapters.items():
      _write_bfloat16(source, staged / name)
      described = (source / CONFIG_FILE).read_text(encoding="utf-8")
      write_text(staged / name / CONFIG_FILE, rename(described))
    staged.replace(folder)
  finally:
    shutil.rmtree(staged, ignore_errors=True)


def _portable(
  record: Mapping[str, Any], commands: Sequence[Sequence[str]], root: Path
) -> Callable[[Any], Any]:
  """A function that takes this machine's paths out of JSON values and texts.

  A path of the record is what the last command that trains calls it; below the root it is relative
  to it; a run folder elsewhere would have been runs/ and its name.
  """
  words = [words for words in commands if words[1] == TRAIN][-1]
  flags = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
  if Path(flags.get("run_dir", "/")).is_absolute():
    flags["run_dir"] = f"runs/{Path(record['run_dir']).name}"
  is_path = lambda value: isinstance(value, str) and value.startswith("/")
  paths = [(old, flags[name]) for name, old in record.items() if name in flags and is_path(old)]
  longest_first = sorted(paths, key=lambda pair: -len(pair[0]))
  whole = [(rf"(?<![\w./-]){re.escape(old)}(?![\w.-])", new) for old, new in longest_first]
  inside = rf"(?<![\w./-]){re.escape(str(root))}/"

  def rename(text: str) -> str:
    for old, new in (*whole, (inside, "")):
      text = re.sub(old, new.replace("\\", r"\\"), text)
    return text

  return lambda value: _replaced(value, rename)


def run_again(folder: Path, run_dir: Path, *, root: Path) -> dict[str, str]:
  """Runs the commands of a results folder with run folders of their own.

  A folder that one command makes and a later one names is the new one there, too. Chat templates
  show the day that the record says.

  Args:
    folder: the results folder.
    run_dir: where the last training goes; it goes on there if it was interrupted. Those before it
      go to `RUN_DIR-1` and so on.
    root: of the repository, where the commands run.

  Returns:
    The new run folders by the old ones' names.

  Raises:
    ValueError: a command that is none of ours, or that failed.
  """
  commands = read_commands((folder / COMMAND).read_text(encoding="utf-8"))
  date = _read_record(folder).get("template_date")
  commands, moved = redirected(commands, run_dir.absolute(), date or "")
  for words in commands:
    print(f"$ {shlex.join(words)}", flush=True)
    status = subprocess.run([sys.executable, *words[1:]], cwd=root).returncode
    if status:
      raise ValueError(f"{words[1]} ended with status {status}")
  return moved


def redirected(
  commands: Sequence[Sequence[str]], run_dir: Path, date: str
) -> tuple[list[list[str]], dict[str, str]]:
  """The commands with other run folders, and the new folders by the old ones.

  Args:
    commands: from `read_commands`.
    run_dir: of the last one that trains.
    date: the `--template_date` of those that train and name none; empty: none.
  """
  training = [number for number, words in enumerate(commands) if words[1] == TRAIN]
  moved: dict[str, str] = {}
  found = [list(words) for words in commands]
  for place, number in enumerate(training, 1):
    new, words = str(run_dir) if place == len(training) else f"{run_dir}-{place}", found[number]
    old = next((w.partition("=")[2] for w in words if w.startswith("--run_dir=")), "")
    words[:] = [word for word in words if not word.startswith("--run_dir=")]
    if date and not any(word.startswith("--template_date=") for word in words):
      words.append(f"--template_date={date}")
    if old:
      moved[old] = new
    words.append(f"--run_dir={new}")
  return [[_moved(word, moved) for word in words] for words in found], moved


@dataclass(frozen=True)
class Row:
  """One line of a comparison.

  Attributes:
    file: of the results folder.
    what: is compared.
    then: its value there, in words.
    now: in the new run.
    verdict: that it is equal or near enough, or what is wrong.
    fine: whether nothing is.
  """

  file: str
  what: str
  then: str
  now: str
  verdict: str
  fine: bool


@dataclass(frozen=True)
class Comparison:
  """What a new run gave beside what was recorded.

  Attributes:
    elsewhere: how machine and packages differ; empty where every bit has to be the same.
    rows: what was compared.
  """

  elsewhere: tuple[str, ...]
  rows: tuple[Row, ...]

  @property
  def reproduced(self) -> bool:
    """Whether nothing differs more than it may."""
    return all(row.fine for row in self.rows)


def compare_with(
  folder: Path, run_dir: Path, *, root: Path, moved: Mapping[str, str] | None = None
) -> Comparison:
  """Compares a run with a results folder.

  On the same kind of processor with the same packages every bit has to be the same, times aside;
  elsewhere, and on accelerators, each mean reward has to lie within its recorded 95% interval.

  Args:
    folder: the results folder.
    run_dir: the run folder.
    root: of the repository.
    moved: from `run_again`.
  """
  at_home = lambda value: _below(root, _moved(value, moved or {}))
  old, new = (at_home(_read_record(one)) for one in (folder, run_dir))
  elsewhere = tuple(_differences_of_place(old, new))
  changed = changed_settings(old, new)
  # Where it lies says less than what it holds; --dtype=auto may have chosen another.
  free = ("model (", "dtype (") if elsewhere else ("model (",)
  changed = [change for change in changed if not change.startswith(free)]
  rows = [_row("config.json", "settings", "", "", changed)]
  rows.append(_compared_metrics(folder, run_dir, exact=not elsewhere))
  for path in sorted(folder.glob("eval_*.json")):
    again = run_dir / path.name
    if not again.is_file():
      rows.append(_row(path.name, "", "", "", [f"{run_dir} has none"]))
      continue
    pair = [at_home(json.loads(p.read_text(encoding="utf-8"))) for p in (path, again)]
    rows += _compared_evaluations(path.name, *pair, exact=not elsewhere)
  if not elsewhere and (folder / "adapter").is_dir():
    rows.append(_compared_adapters(folder / "adapter", run_dir / "adapter"))
  return Comparison(elsewhere, tuple(rows))


def _row(file: str, what: str, then: str, now: str, faults: Sequence[str], well="equal") -> Row:
  verdict = f"DIFFERENT: {'; '.join(faults)}" if faults else well
  return Row(file, what, then, now, verdict, not faults)


def _differences_of_place(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
  """Why the last bits may be others, in words."""
  say = lambda name, then, now: f"{name} ({then or 'not recorded'} then, {now} now)"
  for name in ("processor", "devices"):
    if not old.get(name) or old[name] != new[name]:
      yield say(name, old.get(name), new[name])
  for name in ("python", "version"):
    then, now = minor(old.get(name, "")), minor(new[name])
    if then != now:
      yield say(name, then, now)
  before = old.get("packages", {})
  for name, version in new["packages"].items():
    if before.get(name) != version:
      yield say(name, before.get(name), version)
  if not all(device.startswith("cpu") for device in new["devices"]):
    yield f"{new['devices'][0]}, whose sums have no fixed order"


def _compared_metrics(folder: Path, run_dir: Path, *, exact: bool) -> Row:
  """All steps but their times; where sums may differ, only that there are as many."""
  pair = [[v for _, v in whole_lines(one / "metrics.jsonl")] for one in (folder, run_dir)]
  then, now = map(len, pair)
  faults = [] if then == now else ["not as many steps"]
  if exact:
    for old, new in zip(*pair, strict=False):
      names = sorted(k for k in old.keys() | new.keys() if not k.startswith(TIMES))
      differing = [name for name in names if old.get(name) != new.get(name)]
      if differing:
        name = differing[0]
        words = f"{name} ({old.get(name)} then, {new.get(name)} now)"
        more = f" and {len(differing) - 1} more" if differing[1:] else ""
        faults.append(f"step {old['step']}, {words}{more}")
        break
  what = "steps" if exact else "number of steps"
  return _row("metrics.jsonl", what, str(then), str(now), faults)


def _compared_evaluations(
  file: str, old: Mapping[str, Any], new: Mapping[str, Any], *, exact: bool
) -> Iterator[Row]:
  """One row for each mean reward, and one for the rest where all has to be equal."""
  again = dict(_means(new))
  for name, found in _means(old):
    low, high = found["reward_ci95"]
    then, now = found["reward_mean"], again.get(name, {}).get("reward_mean", math.nan)
    faults = []
    if then != now and (exact or not low <= now <= high):
      faults = [f"by {now - then:+.1e}" if exact else "outside of the interval"]
    words = f"{then:.4f} [{low:.4f}, {high:.4f}]"
    well = "equal" if then == now else "inside of the interval"
    yield _row(file, f"{name} reward".strip(), words, f"{now:.4f}", faults, well)
  if exact:
    faults = _unequal(old, new)
    more = [f"and {len(faults) - 3} more"] if faults[3:] else []
    yield _row(file, "everything", "", "", faults[:3] + more)


def _means(found: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
  """The summaries with a mean reward, by split or category."""
  if {"reward_mean", "reward_ci95"} <= found.keys():
    yield at, found
  for name, inner in found.items():
    if isinstance(inner, Mapping) and name not in _SLICES:
      yield from _means(inner, f"{at} {name}".strip())


def _unequal(old: Any, new: Any, at: str = "") -> list[str]:
  """Where two JSON values differ, times aside."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    names = [name for name in {**old, **new} if not name.startswith((*TIMES, "seconds"))]
    inner = ((name, old.get(name), new.get(name)) for name in names)
    return [where for name, a, b in inner for where in _unequal(a, b, f"{at}.{name}".strip("."))]
  return [] if old == new else [at]


def _compared_adapters(then: Path, now: Path) -> Row:
  old, new = ({} if not p.is_dir() else dict(_in_bfloat16(p)) for p in (then, now))
  same = lambda name: name in new and np.array_equal(old[name], new[name])
  faults = [name for name in old if not same(name)] + sorted(new.keys() - old.keys())
  return _row("adapter", "weights", str(len(old)), str(len(new)), faults[:1])


def _in_bfloat16(adapter: Path) -> Iterator[tuple[str, np.ndarray]]:
  """The tensors of a folder of adapters."""
  file = TensorFile(adapter / WEIGHTS_FILE)
  for name, shape in file.shapes.items():
    yield name, file.rows(name, 0, shape[0]).astype(ml_dtypes.bfloat16)


def _write_bfloat16(adapter: Path, folder: Path) -> None:
  """Writes a folder of adapters in bfloat16."""
  folder.mkdir(parents=True)
  shapes = TensorFile(adapter / WEIGHTS_FILE).shapes
  specs = {name: (shape, np.dtype(ml_dtypes.bfloat16)) for name, shape in shapes.items()}
  write_tensors(folder / WEIGHTS_FILE, specs, _in_bfloat16(adapter))


def _check_sizes(adapters: Mapping[str, Path], results: Path) -> None:
  """Refuses adapters that are too large, alone or with those that other results keep."""
  total = sum(path.stat().st_size for path in results.glob(f"*/*/{WEIGHTS_FILE}"))
  for name, adapter in adapters.items():
    shapes = TensorFile(adapter / WEIGHTS_FILE).shapes.values()
    size = 2 * sum(map(math.prod, shapes))
    if size > ADAPTER_BYTES:
      raise ValueError(
        f"{name} takes {size / 1e6:.1f} MB in bfloat16, {ADAPTER_BYTES / 1e6:.0f} at most: train "
        "with a lower --lora_rank or fewer --lora_targets"
      )
    total += size
  if total > ALL_ADAPTERS_BYTES:
    raise ValueError(
      f"the adapters below {results} would take {total / 1e6:.1f} MB, "
      f"{ALL_ADAPTERS_BYTES / 1e6:.0f} at most: keep fewer"
    )


def _read_record(folder: Path) -> dict[str, Any]:
  path = folder / "config.json"
  if not path.is_file():
    raise ValueError(f"{folder} is neither a run folder nor one of results: it has no config.json")
  return json.loads(path.read_text(encoding="utf-8"))


def _below(root: Path, value: Any) -> Any:
  """JSON values, or a text, with paths below the repository's root relative to it."""
  return _replaced(value, lambda text: text.replace(f"{root}/", ""))


def _moved(value: Any, moved: Mapping[str, str]) -> Any:
  """JSON values with the new names of folders that were moved."""

  def rename(text: str) -> str:
    before, equals, path = text.rpartition("=")
    for old, new in moved.items():
      if path == old or path.startswith(f"{old}/"):
        return f"{before}{equals}{new}{path[len(old) :]}"
    return text

  return _replaced(value, rename)


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
  if isinstance(value, str):
    return change(value)
  if isinstance(value, Mapping):
    return {change(name): _replaced(inner, change) for name, inner in value.items()}
  if isinstance(value, list):
    return [_replaced(inner, change) for inner in value]
  return value
