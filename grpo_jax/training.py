"""The training loop: checkpoints, metrics, evaluations and the report around `Run.step`."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from grpo_jax import alarms, hosts
from grpo_jax.checkpoints import Checkpoints
from grpo_jax.config import RunConfig
from grpo_jax.evaluate import evaluate
from grpo_jax.models import Params, save_adapters, save_pretrained
from grpo_jax.profiling import profiled_steps
from grpo_jax.report import write_report
from grpo_jax.rewards import CombinedReward, Reward, load_reward
from grpo_jax.run import Run
from grpo_jax.run_folder import claimed, disk_is_full, whole_lines, write_text
from grpo_jax.schema import ToolTask
from grpo_jax.stop_signals import Stopped, StopSignals
from grpo_jax.tracking import Tracking
from grpo_jax.types import TrainState

log = logging.getLogger(__name__)


class TrainingFailed(RuntimeError):
  """The run cannot go on as it is; what to do is in the message."""


def train(config: RunConfig) -> Path:
  """Runs GRPO from start (or from the last checkpoint) to end and reports what was gained.

  Args:
    config: the settings of the run.

  Returns:
    The run folder, with all that DESIGN calls for: config.json, metrics.jsonl, rollouts/,
    checkpoints/, eval_base.json, eval_final.json, report.md, report.html, *.png and model/
    (with LoRA adapter/, and model/ only with `save_merged`).

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
      return _train(config, reward, signals)
  except Exception as error:
    if disk_is_full(error):
      raise TrainingFailed(
        f"no room left on the disk or quota of {config.run_dir}: free some and run the same "
        f"command again, it goes on from the last good checkpoint ({error})"
      ) from error
    raise


def _train(config: RunConfig, reward: Reward, signals: StopSignals) -> Path:
  run = Run(config)
  with Checkpoints(config.run_dir, config.keep_checkpoints) as checkpoints:
    state, tokens = run.start(checkpoints, lambda p: _evaluate_start(run, p, reward, signals))
    first = int(state.step)
    lines = [values for _, values in whole_lines(run.dir / "metrics.jsonl")][:first]
    unevaluated = _unevaluated(run, first, lines)
    if unevaluated:
      unevaluated |= held_out_rewards(run, state.params, reward, signals.check)
      lines.pop()
    with _tracking(run, first - 1 if unevaluated else first) as tracking:
      if unevaluated:
        _record(run, checkpoints, tracking, lines, state, unevaluated)
      bar = tqdm(
        range(first, config.steps), "GRPO", config.steps, initial=first, unit="step",
        disable=not hosts.is_first(),
      )  # fmt: skip
      for step in profiled_steps(bar, run.dir, config.profile):
        try:
          state, metrics = run.step(step, state, reward, signals.check)
          tokens += int(metrics.pop("tokens"))
          metrics["num_tokens"] = tokens
          if _evaluates_after(config, step + 1):
            metrics |= held_out_rewards(run, state.params, reward, signals.check)
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
        bar.set_postfix(
          reward=f"{metrics['reward']:.3f}", tokens_s=f"{metrics['tokens_per_second']:.0f}"
        )
        _record(run, checkpoints, tracking, lines, state, metrics)
    evaluate_all(run, "final", state.params, reward, signals.check)
  model = run.dir / "model"
  if config.lora:  # first what was trained, which is small and cannot be had again
    save_adapters(run.policy, state.params, config.lora, run.dir / "adapter", config.model)
  if config.save_merged or not config.lora:
    whole = run.assemble(state.params)
    save_pretrained(run.policy, whole, model, tokenizer=run.tokenizer, dtype="float32")
  elif model.exists():
    log.warning("%s may be older than adapter/: --save_merged writes it again", model)
  if hosts.is_first():
    write_report(run.dir)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  log.info(
    "%d sampling and %d update programs compiled; peak memory %.2f GiB",
    len(run.sample_shapes), len(run.update_shapes), peak,
  )  # fmt: skip
  return run.dir


def _tracking(run: Run, first: int) -> contextlib.AbstractContextManager[Tracking | None]:
  """The run's metrics and trackers, in the first process only."""
  if not hosts.is_first():
    return contextlib.nullcontext()
  return Tracking(run.dir, run.config.track, start_step=first, config=run.record)


def _evaluates_after(config: RunConfig, done: int) -> bool:
  """Whether the policy is evaluated after so many steps; after the last one it always is."""
  return bool(config.eval_every) and done % config.eval_every == 0 and done < config.steps


def _unevaluated(
  run: Run, done: int, lines: Sequence[Mapping[str, float | None]]
) -> dict[str, float]:
  """The metrics of the newest step where an evaluation is due but missing: it was stopped."""
  due = bool(lines) and _evaluates_after(run.config, done)
  missing = due and any(f"eval/{split}/reward" not in lines[-1] for split in run.held_out)
  if not hosts.from_first(missing):
    return {}
  return {k: math.nan if v is None else v for k, v in lines[-1].items() if k != "step"}


def _record(
  run: Run,
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
  if done % run.config.checkpoint_every == 0 or done == run.config.steps or bad:
    if tracking:
      tracking.sync()
    evaluated = [value for name, value in metrics.items() if name.startswith("eval/")]
    checkpoints.save(
      state,
      {"num_tokens": metrics["num_tokens"]},
      float(np.mean(evaluated)) if evaluated else None,
    )
  if bad >= run.config.max_bad_steps:
    raise TrainingFailed(
      f"no finite update in {bad} steps up to {done - 1}: the batches are in "
      f"{run.dir / 'bad_steps'}; lower --learning_rate or --clip_norm, or use "
      "--dtype=float32 (or raise --max_bad_steps)"
    )


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


def _evaluate_start(run: Run, params: Params, reward: Reward, signals: StopSignals) -> None:
  """Evaluates the policy before training, unless that was done with the settings of now."""
  path = run.dir / "eval_base.json"
  found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
  wanted = {split: evaluation_settings(run.record, split) for split in run.held_out}
  same = {split: summary.get("settings") for split, summary in found.items()} == wanted
  if hosts.from_first(same):
    return
  if found:
    log.info("%s is not known to be of today's settings: evaluating the start again", path)
  evaluate_all(run, "base", params, reward, signals.check)


def evaluation_settings(record: Mapping[str, Any], split: str) -> dict[str, Any]:
  """What a score depends on besides the policy's training; two that differ in it say no gain.

  Args:
    record: what `run_record` returns.
    split: the held-out one; its hash is that of the tasks that are left after `eval_limit`.
  """
  reward, judge = record["reward_config"], record["reward_config"]["judge"]
  pick = lambda values, *names: {name: values[name] for name in names}
  return {
    **pick(record, "model_sha256", "reward", "max_prompt_tokens", "seed", "dtype"),
    **pick(record, "template_date", "plain_user_text"),
    **pick(reward, "parse", "weights", "on_error", "time_limit"),
    "data_sha256": record["data_sha256"][split],
    "reward_sha256": sorted(record["reward_sha256"].values()),
    "max_completion_tokens": record["grpo"]["sampling"]["max_tokens"],
    "judge": pick(judge, "model", "judged", "rubrics", "max_tokens") if judge else None,
  }


def evaluate_all(
  run: Run,
  when: str,
  params: Params,
  reward: Reward,
  between: Callable[[], None] = lambda: None,
) -> None:
  """Scores every held-out split and writes eval_<when>.json and eval/<when>_<split>.jsonl."""
  summaries = {}
  (run.dir / "eval").mkdir(exist_ok=True)
  for split, tasks in run.held_out.items():
    log.info("evaluating %d held-out tasks (%s, %s)", len(tasks), split, when)
    summaries[split], rows = _evaluated(run, params, tasks, reward, between)
    summaries[split]["settings"] = evaluation_settings(run.record, split)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if hosts.is_first():
      write_text(run.dir / "eval" / f"{when}_{split}.jsonl", text)
  if hosts.is_first():
    write_text(run.dir / f"eval_{when}.json", json.dumps(summaries, indent=2) + "\n")


def held_out_rewards(
  run: Run, params: Params, reward: Reward, between: Callable[[], None] = lambda: None
) -> dict[str, float]:
  """Mean reward on every held-out split, as metrics."""
  return {
    f"eval/{split}/reward": _evaluated(run, params, tasks, reward, between)[0]["reward_mean"]
    for split, tasks in run.held_out.items()
  }


def _evaluated(
  run: Run,
  params: Params,
  tasks: Sequence[ToolTask],
  reward: Reward,
  between: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  # A score on held-out tasks stands for itself; normalising would compare unrelated prompts.
  plain = reward.unnormalised() if isinstance(reward, CombinedReward) else reward
  return evaluate(
    run.policy,
    run.assemble(params),
    run.tokenizer,
    tasks,
    reward=plain,
    max_prompt_tokens=run.config.max_prompt_tokens,
    max_completion_tokens=run.grpo.sampling.max_tokens,
    stop_ids=run.stop_ids,
    seed=run.config.seed,
    date=run.config.template_date,
    plain_user_text=run.config.plain_user_text,
    between=between,
  )
