"""Training: the run from top to bottom, then its parts.

`read_data` and `set_up` make what stays the same over a run and touch no file; `take_step` is one
`grpo_step` on the batch of its number. Replay runs the same three. Everything that is written is
written by the loop in `_train`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import logging
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax.benchmarking.profiling import profiled_steps
from grpo_jax.config import (
  GRPOConfig,
  OptimizerConfig,
  RunConfig,
  changed_settings,
  recorded,
  run_record,
  template_day,
)
from grpo_jax.evaluate import evaluate
from grpo_jax.files.atomic import disk_is_full, write_text
from grpo_jax.grpo import (
  advantages_of,
  grpo_step,
  kl_to_reference,
  reference_program,
  resolve,
  step_key,
  update_program,
)
from grpo_jax.models import (
  DecoderConfig,
  LoraConfig,
  Params,
  init_adapters,
  load_adapters,
  load_config,
  load_pretrained,
  save_adapters,
  save_pretrained,
  with_adapters,
)
from grpo_jax.models.compute_dtype import ComputeDtype, compute_dtype
from grpo_jax.optimizers import make_optimizer, make_schedule, steps_taken
from grpo_jax.report.page import write_report
from grpo_jax.rewards import CombinedReward, Reward, load_reward
from grpo_jax.runs import alarms, hosts
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.runs.console import Progress
from grpo_jax.runs.folder import claimed, whole_lines
from grpo_jax.runs.preemption import Stopped, StopSignals
from grpo_jax.runs.rollouts import (
  Groups,
  StepRecord,
  rollout_metrics,
  score_rollout,
  write_bad_step,
  write_rollouts,
)
from grpo_jax.runs.trackers import Tracking
from grpo_jax.sampling import cut_to_bucket, pad_to_bucket, replace_idle, sample_program
from grpo_jax.sft import demonstration_rollout
from grpo_jax.sharding import (
  batch_parts,
  batch_sharding,
  make_mesh,
  parameter_sharding,
  state_shardings,
)
from grpo_jax.tasks import completion_text, demonstrate, load_tokenizer, render, stop_token_ids
from grpo_jax.tasks.batches import batch_at, fresh_order
from grpo_jax.tasks.jsonl import data_sha256
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.sources import read_tasks
from grpo_jax.tasks.summary import data_summary
from grpo_jax.types import Prompts, Rollout, TrainState

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

Check = Callable[[], None]  # called between phases; may raise `Stopped`
log = logging.getLogger(__name__)


class TrainingFailed(RuntimeError):
  """The run cannot go on as it is; what to do is in the message."""


def train(config: RunConfig) -> Path:
  """Trains from start (or from the last checkpoint) to end and reports what was gained.

  Args:
    config: the settings of the run.

  Returns:
    The run folder: config.json, metrics.jsonl, rollouts/, checkpoints/, eval_base.json,
    eval_final.json, report.md, report.html, *.png and model/ (with LoRA adapter/, and model/ only
    with `save_merged`).

  Raises:
    ValueError: settings, data and model do not fit together; one sentence, before any work.
    Stopped: a signal asked for it; the run folder has a checkpoint to go on from.
    TrainingFailed: the numbers went bad, or the disk is full; the checkpoints before are whole.
  """
  # The reward first: a name that is wrong must not leave a run folder behind.
  try:
    with (
      load_reward(config.reward, config.reward_config) as reward,
      claimed(Path(config.run_dir)) if hosts.is_first() else contextlib.nullcontext(),
      StopSignals() as signals,
    ):
      return _train(config, reward, signals.check)
  except Exception as error:
    if disk_is_full(error):
      raise TrainingFailed(
        f"no room left on the disk or quota of {config.run_dir}: free some and run the same "
        f"command again, it goes on from the last good checkpoint ({error})"
      ) from error
    raise


def _train(config: RunConfig, reward: Reward, check: Check) -> Path:
  data = read_data(config)
  config, run_dir = data.config, Path(config.run_dir)
  check_same_run(run_dir, data)
  setup, state = set_up(data)
  with Checkpoints(run_dir, config.keep_checkpoints) as checkpoints:
    newest = hosts.from_first(newest_step(config, checkpoints) if hosts.is_first() else 0)
    # Nothing is refused from here on: the run begins.
    if hosts.is_first():
      write_text(run_dir / "config.json", json.dumps(data.record, indent=2) + "\n")
    checkpoints.drop_after(newest)
    if newest < config.steps and hosts.is_first():  # it was of a run of fewer steps
      (run_dir / "eval_final.json").unlink(missing_ok=True)
    if not hosts.from_first(is_evaluated(data, "base")):
      evaluate_all(setup, "base", state.params, reward, check)
    tokens = 0
    if newest:
      state, meta = checkpoints.restore(newest, state)
      tokens = int(meta["num_tokens"])
      log.info("continuing %s at step %d", run_dir, newest)

    lines = [values for _, values in whole_lines(run_dir / "metrics.jsonl")][:newest]
    unevaluated = _unevaluated(data, newest, lines)
    if unevaluated:
      unevaluated |= held_out_rewards(setup, state.params, reward, check)
      lines.pop()
    shapes: set[tuple[int, int]] = set()
    with _tracking(data, newest - 1 if unevaluated else newest) as tracking:
      if unevaluated:
        _log_step(config, checkpoints, tracking, lines, state, unevaluated)
      bar = Progress(newest, config.steps, shown=hosts.is_first())
      for step in profiled_steps(bar, run_dir, config.profile):
        try:
          check()
          began = time.perf_counter()
          state, record = take_step(setup, state, step, reward, check)
          if hosts.is_first():
            _write_step(run_dir, record)
          metrics = record.metrics | _times(record, began)
          tokens += int(metrics.pop("tokens"))
          metrics["num_tokens"] = tokens
          shapes.add(record.shape)
          if _evaluates_after(config, step + 1):
            metrics |= held_out_rewards(setup, state.params, reward, check)
        except Stopped:
          if tracking:
            if int(state.step) > step:
              # The state before the update is gone, so the step is kept, and logged without its
              # evaluation; the run makes up for that when it goes on.
              tracking.log(step, metrics)
            tracking.sync()
          checkpoints.save(state, {"num_tokens": tokens})
          checkpoints.wait()
          raise
        bar.show(
          step + 1,
          reward=f"{metrics['reward']:.3f}",
          tokens_s=f"{metrics['tokens_per_second']:.0f}",
        )
        _log_step(config, checkpoints, tracking, lines, state, metrics)
    if config.evaluate_final and not hosts.from_first(is_evaluated(data, "final")):
      evaluate_all(setup, "final", state.params, reward, check)
  _save_trained(setup, state.params)
  if hosts.is_first():
    write_report(run_dir)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  log.info(
    "%d sampling and %d update programs compiled; peak memory %.2f GiB",
    len({prompt for prompt, _ in shapes}), len(shapes), peak,
  )  # fmt: skip
  return run_dir


@dataclass(frozen=True)
class Data:
  """What a run trains and evaluates on, as the policy reads it.

  Attributes:
    config: the settings, what they leave open settled.
    tokenizer: the model's.
    stop_ids: tokens that end a completion.
    tasks: the training tasks.
    prompts: their token ids.
    demonstrations: the token ids of their right answers, where these are trained on.
    held_out: tasks by name of the split.
    record: what config.json says of the run.
  """

  config: RunConfig
  tokenizer: PreTrainedTokenizerBase
  stop_ids: tuple[int, ...]
  tasks: Sequence[ToolTask]
  prompts: Sequence[list[int]]
  demonstrations: Sequence[list[int]]
  held_out: Mapping[str, Sequence[ToolTask]]
  record: Mapping[str, Any]


def read_data(config: RunConfig) -> Data:
  """Reads and renders a run's tasks, and says what they hold.

  Raises:
    ValueError: data, template and settings do not fit together.
  """
  config = dataclasses.replace(
    config,
    template_date=_template_date(config),
    dtype=_dtype(config),
    **_lora_of_start(config),
  )
  parts = batch_parts(make_mesh(config.mesh))
  if config.prompts_per_step % parts:
    raise ValueError(
      f"--mesh={config.mesh} splits prompts into {parts} parts, which do not divide "
      f"--prompts_per_step={config.prompts_per_step}"
    )
  tokenizer = load_tokenizer(config.model)
  stop_ids = stop_token_ids(tokenizer, config.model)
  sources = {"train": config.data, **dict(config.eval_data)}
  splits = {name: read_tasks(source, config.data_seed) for name, source in sources.items()}
  for name in splits.keys() - {"train"}:
    splits[name] = splits[name][: config.eval_limit or None]
  shown: Any = {"date": config.template_date, "plain_user_text": config.plain_user_text}
  prompts = {
    name: [render(tokenizer, task, **shown) for task in tasks] for name, tasks in splits.items()
  }
  demonstrations = [
    demonstrate(tokenizer, task, prompt, stop_ids, call_format=config.call_format, **shown)
    for task, prompt in zip(splits["train"], prompts["train"], strict=True)
    if config.technique == "sft"
  ]
  for name, tasks in splits.items():
    lengths = [len(prompt) for prompt in prompts[name]]
    log.info("%s\n%s", name, data_summary(tasks, lengths, config.max_prompt_tokens))
    _check_lengths(name, "prompt", lengths, config.max_prompt_tokens)
  if demonstrations:
    lengths = [len(answer) for answer in demonstrations]
    _check_lengths("train", "completion", lengths, config.grpo.sampling.max_tokens)
  log.info("%s", config.plan())
  return Data(
    config,
    tokenizer,
    stop_ids,
    splits["train"],
    prompts["train"],
    demonstrations,
    {name: tasks for name, tasks in splits.items() if name != "train"},
    run_record(config, {name: data_sha256(tasks) for name, tasks in splits.items()}),
  )


@dataclass(frozen=True)
class Setup:
  """What stays the same over a run: data, model, optimizer, and the compiled programs of a step.

  Attributes:
    data: tasks and settings.
    decoder: the model's config, compute dtype included.
    mesh: of the devices.
    settings: the numbers of Algorithm 1, resolved for model and mesh.
    base: the frozen model that adapters are laid over; None where the whole model is trained.
    ref_params: the policy of the start, where its KL is wanted; else None.
    schedule: from the count of optimizer steps to the learning rate.
    sample: (trained, base, prompts, key) -> `Rollout`.
    update: (state, batch, base) -> (state, metrics); the state is donated.
    reference: (ref_params, rollout) -> log-probs [P, G, T].
  """

  data: Data
  decoder: DecoderConfig
  mesh: Mesh
  settings: GRPOConfig
  base: Params | None
  ref_params: Params | None
  schedule: optax.Schedule
  sample: Callable[..., Rollout]
  update: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
  reference: Callable[..., jax.Array]


def set_up(data: Data) -> tuple[Setup, TrainState]:
  """Loads the model, builds optimizer and programs, and makes the state of step 0."""
  config, mesh = data.config, make_mesh(data.config.mesh)
  # Master weights are float32; a frozen base is only ever read in the compute dtype.
  decoder, params = load_pretrained(
    config.model,
    config.dtype if config.lora else "float32",
    sharding=parameter_sharding(load_config(config.model), mesh),
  )
  decoder = dataclasses.replace(decoder, dtype=compute_dtype(config.dtype, decoder))
  settings = resolve(config.grpo, decoder, mesh, data.stop_ids)
  base: Params | None = None
  if config.lora:
    draw = functools.partial(init_adapters, decoder, config.lora)
    key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)  # no step has this number
    placed = state_shardings(decoder, mesh, jax.eval_shape(draw, key))
    base, params = params, jax.jit(draw, out_shardings=placed)(key)
    if config.init_adapter:
      params = jax.device_put(load_adapters(config.init_adapter, decoder)[0], placed)

  # The optimizer counts its own steps, of which a training step may take several.
  steps = config.steps * settings.inner_updates * settings.minibatches
  optimizer = OptimizerConfig(
    **{field.name: getattr(config, field.name) for field in dataclasses.fields(OptimizerConfig)}
  )
  schedule, tx, programs = _programs(
    decoder, mesh, settings, optimizer, steps if config.decay != "none" else 0, config.lora
  )
  # The reference is kept only where it is needed; it must survive the donated state. New adapters
  # change nothing yet: the base itself is the policy of the start.
  ref_params = None
  if settings.kl_weight or config.kl_every:
    new = config.lora and not config.init_adapter
    ref_params = base if new else with_adapters(jax.tree.map(jnp.copy, params), base, config.lora)
  setup = Setup(
    data,
    decoder,
    mesh,
    settings,
    base,
    ref_params,
    schedule,
    *programs,
  )
  placed = state_shardings(decoder, mesh, jax.eval_shape(tx.init, params))
  opt_state = jax.jit(tx.init, out_shardings=placed)(params)
  first = lambda: (jnp.int32(0), jax.random.key(config.seed))
  step, key = jax.jit(first, out_shardings=NamedSharding(mesh, PartitionSpec()))()
  return setup, TrainState(params, opt_state, step, key)


@functools.lru_cache(maxsize=4)
def _programs(
  decoder: DecoderConfig,
  mesh: Mesh,
  settings: GRPOConfig,
  optimizer: OptimizerConfig,
  steps: int,
  lora: LoraConfig | None,
) -> tuple[optax.Schedule, optax.GradientTransformation, tuple[Any, Any, Any]]:
  """Schedule, optimizer and the programs of `Setup`.

  Kept for the next run of the process: one that goes on, or a replay, traces none of them again.
  """
  schedule = make_schedule(optimizer.learning_rate, optimizer.warmup_steps, optimizer.decay, steps)
  tx = make_optimizer(optimizer, schedule)
  sample = sample_program(
    decoder, mesh, settings.sampling, lora, gather_weights=settings.gather_weights
  )
  update = update_program(decoder, mesh, tx, settings, lora)
  return schedule, tx, (sample, update, reference_program(decoder, mesh, settings))


def take_step(
  setup: Setup, state: TrainState, step: int, reward: Reward, check: Check = lambda: None
) -> tuple[TrainState, StepRecord]:
  """One `grpo_step`; its numbers depend on (seed, step) and the state only.

  Args:
    setup: from `set_up`.
    state: donated, but only after the last call of `check`.
    step: its number, from 0.
    reward: what scores the completions.
    check: called between phases; may raise to give the step up with `state` unharmed.

  Returns:
    The state after, and what is to be recorded of the step.
  """
  data, settings, config = setup.data, setup.settings, setup.data.config
  chosen = batch_at(
    step,
    num_tasks=len(data.tasks),
    prompts_per_step=config.prompts_per_step,
    seed=config.seed,
    lengths=list(map(len, data.prompts)) if config.group_by_length else None,
  ).tolist()
  prompts = _prompts_of(setup, chosen)
  learning_rate = float(setup.schedule(steps_taken(state.opt_state)))  # of the first of its updates
  record, began = StepRecord(step), time.perf_counter()

  def draw(state, prompts, numbers):
    tasks = [data.tasks[i] for i in numbers]
    with record.timed("sample"):
      rollout = _collected(setup, state, prompts, numbers)
      drawn = hosts.fetch(rollout)
    check()
    with record.timed("reward"):
      decode = lambda ids: completion_text(data.tokenizer, ids, data.stop_ids)
      groups = Groups(tasks, drawn, score_rollout(drawn, tasks, reward, decode))
    check()
    return rollout, groups

  def collect(state, prompts):
    rollout, groups = draw(state, prompts, chosen)
    if settings.dynamic_rounds:
      order = fresh_order(step, num_tasks=len(data.tasks), seed=config.seed, without=chosen)
      again = lambda fresh, first: draw(state, _prompts_of(setup, fresh, first), fresh)[1]
      groups, record.resampled = replace_idle(
        groups, order, again, rounds=settings.dynamic_rounds, parts=batch_parts(setup.mesh)
      )
      rollout = jax.device_put(groups.drawn, batch_sharding(setup.mesh))
    record.tasks, record.drawn, record.scored = groups
    longest = int(record.drawn.completion_mask.sum(-1).max())
    return cut_to_bucket(rollout, longest), record.scored.rewards

  score_reference = lambda rollout: setup.reference(setup.ref_params, rollout)
  state, found, rollout, rewards = grpo_step(
    state,
    prompts,
    collect=collect,
    update=lambda state, batch: setup.update(state, batch, setup.base),
    reference=score_reference if settings.kl_weight else lambda rollout: None,
    settings=settings,
  )
  if config.kl_every and not settings.kl_weight and step % config.kl_every == 0:
    found["kl"] = kl_to_reference(rollout, score_reference(rollout))
  record.metrics = {name: float(value) for name, value in found.items()}
  record.seconds["update"] = time.perf_counter() - began - sum(record.seconds.values())
  record.shape = (rollout.prompts.tokens.shape[1], rollout.tokens.shape[2])
  record.advantages = np.asarray(advantages_of(rewards, settings))
  record.metrics |= rollout_metrics(record, settings.sampling.max_tokens, data.stop_ids)
  record.metrics["learning_rate"] = learning_rate
  return state, record


def _prompts_of(setup: Setup, chosen: Sequence[int], first: int = 0) -> Prompts:
  """The prompts of some tasks, on the devices, their places in the step counted from `first`."""
  data, pad_id = setup.data, setup.settings.sampling.pad_id
  padded = pad_to_bucket([data.prompts[i] for i in chosen], pad_id)
  padded = dataclasses.replace(padded, index=padded.index + np.int32(first))
  return jax.device_put(padded, batch_sharding(setup.mesh))


def _collected(setup: Setup, state: TrainState, prompts: Prompts, chosen: Sequence[int]) -> Rollout:
  """What there is to learn from: the tasks' demonstrations, or samples of the policy."""
  if setup.settings.technique == "grpo":
    return setup.sample(state.params, setup.base, prompts, step_key(state))
  answers = [setup.data.demonstrations[i] for i in chosen]
  rollout = demonstration_rollout(prompts, answers, setup.settings.sampling)
  return jax.device_put(rollout, batch_sharding(setup.mesh))


def check_same_run(run_dir: Path, data: Data) -> None:
  """Checks that the folder, if it holds a run, holds this one.

  Raises:
    ValueError: its settings, data, model or reward differ.
  """
  path = run_dir / "config.json"
  if not path.exists():
    return
  try:
    old = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is damaged ({error}); remove it to go on as you say") from error
  changed = "; ".join(changed_settings(old, data.record))
  if changed and not data.config.allow_changes:
    raise ValueError(
      f"{run_dir} holds a run with other settings: {changed}. Choose another --run_dir, or "
      "--allow_changes to go on all the same"
    )
  if changed:
    log.warning("going on with other settings: %s", changed)


def newest_step(config: RunConfig, checkpoints: Checkpoints) -> int:
  """The step of the newest checkpoint to go on from; 0 where the run has none yet.

  A checkpoint counts only as far as metrics.jsonl is whole, so that the file ends up complete.

  Raises:
    ValueError: there are checkpoints, but they must not or cannot be gone on from.
  """
  run_dir, steps = Path(config.run_dir), checkpoints.steps()
  if config.resume == "never" and steps:
    raise ValueError(f"{run_dir} has checkpoints and --resume=never; choose another --run_dir")
  lines = len(whole_lines(run_dir / "metrics.jsonl"))
  good = checkpoints.newest_good(limit=lines)
  # To die amid the first checkpoint costs no more than to die before it.
  first_only = max(steps, default=0) <= config.checkpoint_every
  if good is None and not (first_only and all(map(checkpoints.is_cut_off, steps))):
    raise ValueError(
      f"{run_dir} has checkpoints of steps {', '.join(map(str, steps))} and none to go on from "
      f"({checkpoints.problem(steps[-1], lines)}): put back what is missing or damaged, or "
      f"remove {run_dir / 'checkpoints'} to start over"
    )
  return good or 0


def is_evaluated(data: Data, when: str) -> bool:
  """Whether eval_<when>.json is there, and of today's settings."""
  path = Path(data.config.run_dir) / f"eval_{when}.json"
  if not path.exists():
    return False
  found = json.loads(path.read_text(encoding="utf-8"))
  wanted = {split: evaluation_settings(data.record, split) for split in data.held_out}
  same = {split: summary.get("settings") for split, summary in found.items()} == wanted
  if not same:
    log.info("%s is not known to be of today's settings: evaluating again", path)
  return same


def evaluation_settings(record: Mapping[str, Any], split: str) -> dict[str, Any]:
  """What a score depends on besides the policy's training; two that differ in it say no gain.

  Args:
    record: what `run_record` returns.
    split: the held-out one; its hash is that of the tasks that are left after `eval_limit`.
  """
  reward, judge = record["reward_config"], record["reward_config"]["judge"]
  pick = lambda values, *names: {name: values[name] for name in names}
  started = ["init_adapter_sha256"] if record["init_adapter_sha256"] else []
  return {
    **pick(record, *started),
    **pick(record, "model_sha256", "reward", "max_prompt_tokens", "seed", "dtype"),
    **pick(record, "template_date", "plain_user_text"),
    **pick(reward, "parse", "weights", "on_error", "time_limit"),
    "data_sha256": record["data_sha256"][split],
    "reward_sha256": sorted(record["reward_sha256"].values()),
    "max_completion_tokens": record["grpo"]["sampling"]["max_tokens"],
    "judge": pick(judge, "model", "judged", "rubrics", "max_tokens") if judge else None,
  }


def evaluate_all(
  setup: Setup, when: str, params: Params, reward: Reward, check: Check = lambda: None
) -> None:
  """Scores every held-out split and writes eval_<when>.json and eval/<when>_<split>.jsonl."""
  run_dir, summaries = Path(setup.data.config.run_dir), {}
  (run_dir / "eval").mkdir(parents=True, exist_ok=True)
  for split, tasks in setup.data.held_out.items():
    log.info("evaluating %d held-out tasks (%s, %s)", len(tasks), split, when)
    bar = Progress(0, len(tasks), shown=hosts.is_first(), name=f"{split}, {when}", unit="task")
    summaries[split], rows = _evaluate_split(setup, params, tasks, reward, check, bar)
    summaries[split]["settings"] = evaluation_settings(setup.data.record, split)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if hosts.is_first():
      write_text(run_dir / "eval" / f"{when}_{split}.jsonl", text)
  if hosts.is_first():
    write_text(run_dir / f"eval_{when}.json", json.dumps(summaries, indent=2) + "\n")


def held_out_rewards(
  setup: Setup, params: Params, reward: Reward, check: Check = lambda: None
) -> dict[str, float]:
  """Mean reward on every held-out split, as metrics."""
  return {
    f"eval/{split}/reward": _evaluate_split(setup, params, tasks, reward, check)[0]["reward_mean"]
    for split, tasks in setup.data.held_out.items()
  }


def _evaluate_split(
  setup: Setup,
  params: Params,
  tasks: Sequence[ToolTask],
  reward: Reward,
  check: Check,
  bar: Progress | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  config = setup.data.config
  # A score on held-out tasks stands for itself; normalising would compare unrelated prompts.
  plain = reward.unnormalised() if isinstance(reward, CombinedReward) else reward

  def between(done: int) -> None:
    check()
    if bar:
      bar.show(done)

  return evaluate(
    setup.decoder,
    with_adapters(params, setup.base, config.lora),
    setup.data.tokenizer,
    tasks,
    reward=plain,
    max_prompt_tokens=config.max_prompt_tokens,
    max_completion_tokens=setup.settings.sampling.max_tokens,
    stop_ids=setup.data.stop_ids,
    seed=config.seed,
    date=config.template_date,
    plain_user_text=config.plain_user_text,
    between=between,
  )


def _write_step(run_dir: Path, record: StepRecord) -> None:
  """Writes a step's rollouts, and what is wanted of one that failed."""
  write_rollouts(run_dir, record)
  failed = run_dir / "first_reward_failure.txt"
  if record.scored.first_failure and not failed.exists():
    log.warning("a reward failed:\n%s", record.scored.first_failure)
    write_text(failed, record.scored.first_failure)
  if record.metrics["skipped_updates"]:
    log.warning("no finite update: see %s", write_bad_step(run_dir, record))


def _times(record: StepRecord, began: float) -> dict[str, float]:
  """Seconds by phase and tokens a second of a step that began then and ends now."""
  total = time.perf_counter() - began
  times = {f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()}
  times["seconds/other"] = total - sum(record.seconds.values())
  if record.resampled:
    useful = (1 - record.metrics["frac_reward_zero_std"]) * len(record.tasks)
    times["dynamic/useful_groups_per_second"] = useful / total
  return times | {
    "step_time": total,
    "tokens_per_second": record.metrics["tokens"] / total,
  }


def _log_step(
  config: RunConfig,
  checkpoints: Checkpoints,
  tracking: Tracking | None,
  lines: list[dict[str, float]],
  state: TrainState,
  metrics: dict[str, float],
) -> None:
  """Logs the step that led to `state`, with its alarms, and saves a checkpoint where one is due.

  Raises:
    TrainingFailed: it was one bad step too many.
  """
  done = int(state.step)
  lines.append({"step": done - 1, **metrics})
  metrics |= _alarms(lines)
  if tracking:
    tracking.log(done - 1, metrics)
  bad = _bad_in_a_row(lines)
  if done % config.checkpoint_every == 0 or done == config.steps or bad:
    if tracking:
      tracking.sync()
    evaluated = [value for name, value in metrics.items() if name.startswith("eval/")]
    checkpoints.save(
      state,
      {"num_tokens": metrics["num_tokens"]},
      float(np.mean(evaluated)) if evaluated else None,
    )
  if bad >= config.max_bad_steps:
    raise TrainingFailed(
      f"no finite update in {bad} steps up to {done - 1}: the batches are in "
      f"{Path(config.run_dir) / 'bad_steps'}; lower --learning_rate or --clip_norm, or use "
      "--dtype=float32 (or raise --max_bad_steps)"
    )


def _save_trained(setup: Setup, params: Params) -> None:
  """Writes adapter/ or model/; with LoRA model/ only if it is asked for."""
  config, run_dir = setup.data.config, Path(setup.data.config.run_dir)
  model = run_dir / "model"
  if config.lora:  # first what was trained, which is small and cannot be had again
    save_adapters(setup.decoder, params, config.lora, run_dir / "adapter", config.model)
  if config.save_merged or not config.lora:
    whole = with_adapters(params, setup.base, config.lora)
    save_pretrained(setup.decoder, whole, model, tokenizer=setup.data.tokenizer, dtype="float32")
  elif model.exists():
    log.warning("%s may be older than adapter/: --save_merged writes it again", model)


def _tracking(data: Data, first: int) -> contextlib.AbstractContextManager[Tracking | None]:
  """The run's metrics and trackers, in the first process only."""
  if not hosts.is_first():
    return contextlib.nullcontext()
  config = data.config
  return Tracking(config.run_dir, config.track, start_step=first, config=data.record)


def _evaluates_after(config: RunConfig, done: int) -> bool:
  """Whether the policy is evaluated after so many steps; after the last one it always is."""
  return bool(config.eval_every) and done % config.eval_every == 0 and done < config.steps


def _unevaluated(
  data: Data, done: int, lines: Sequence[Mapping[str, float | None]]
) -> dict[str, float]:
  """The metrics of the newest step where an evaluation is due but missing: it was stopped."""
  due = bool(lines) and _evaluates_after(data.config, done)
  missing = due and any(f"eval/{split}/reward" not in lines[-1] for split in data.held_out)
  if not hosts.from_first(missing):
    return {}
  return {k: math.nan if v is None else v for k, v in lines[-1].items() if k != "step"}


def _alarms(lines: list[dict[str, float]]) -> dict[str, float]:
  """The alarms as metrics; one that was not up a step ago goes into the log."""
  found = alarms.raised(lines)
  for alarm in alarms.ALARMS:
    name = f"alarms/{alarm.name}"
    if found[name] and not (len(lines) > 1 and lines[-2].get(name)):
      log.warning("%s: %s; try: %s", alarm.name, alarm.meaning, alarm.advice)
  lines[-1].update(found)
  return found


def _bad_in_a_row(lines: Sequence[Mapping[str, float]]) -> int:
  """How many of the newest steps had an update that was skipped."""
  bad = 0
  while bad < len(lines) and lines[-1 - bad].get("skipped_updates"):
    bad += 1
  return bad


def _template_date(config: RunConfig) -> str:
  """The day that templates show, the same on every host."""
  day = datetime.date.fromisoformat(template_day(config.template_date, config.run_dir))
  return datetime.date.fromordinal(hosts.from_first(day.toordinal())).isoformat()


def _dtype(config: RunConfig) -> ComputeDtype:
  """The compute dtype: as it is set, else as the run began with it, else what is fast here."""
  began = recorded(config.run_dir, "dtype") if config.dtype == "auto" else ""
  own = compute_dtype(began or config.dtype, load_config(config.model))
  known = get_args(ComputeDtype)
  return known[hosts.from_first(known.index(own))]  # which may be the only one to see the record


def _lora_of_start(config: RunConfig) -> dict[str, Any]:
  """Rank, alpha and targets of the adapters that a run starts from, as settings.

  Raises:
    ValueError: others are set.
  """
  if not config.init_adapter:
    return {}
  _, own = load_adapters(config.init_adapter, load_config(config.model))
  found = {
    "lora_rank": own.rank,
    "lora_alpha": float(own.alpha),
    "lora_targets": ",".join(own.targets),
  }
  if not (given := config.lora):
    return found
  if dataclasses.replace(given, targets=own.targets) != own or {*given.targets} != {*own.targets}:
    has = " ".join(f"--{name}={value}" for name, value in found.items())
    raise ValueError(
      f"--init_adapter={config.init_adapter} has {has}, which differs from the flags that are "
      "given; leave --lora_rank, --lora_alpha and --lora_targets out to take what it has"
    )
  return {}


def _check_lengths(split: str, what: str, lengths: Sequence[int], limit: int) -> None:
  """Refuses prompts, or demonstrated completions, over the limit before any work."""
  if min(lengths) > limit:
    raise ValueError(
      f"--max_{what}_tokens={limit} is below the shortest {what} of {split}, which has "
      f"{min(lengths)} tokens"
    )
  if max(lengths) > limit:
    over = sum(length > limit for length in lengths)
    raise ValueError(
      f"{over} of {len(lengths)} {what}s of {split} are longer than --max_{what}_tokens={limit}"
      f" (the longest has {max(lengths)} tokens); raise it or leave those tasks out"
    )
