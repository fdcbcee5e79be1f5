"""The training loop: checkpoints, metrics, evaluations and the report around `Run.step`."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from grpo_jax.checkpoints import Checkpoints
from grpo_jax.evaluate import evaluate
from grpo_jax.models import Params, save_pretrained
from grpo_jax.profiling import profiled_steps
from grpo_jax.report import write_report
from grpo_jax.rewards import CombinedReward, Reward, load_reward
from grpo_jax.run import Run
from grpo_jax.run_config import RunConfig
from grpo_jax.schema import ToolTask
from grpo_jax.tracking import Tracking

log = logging.getLogger(__name__)


def train(config: RunConfig) -> Path:
  """Runs GRPO from start (or from the last checkpoint) to end and reports what was gained.

  Args:
    config: the settings of the run.

  Returns:
    The run folder, with all that DESIGN calls for: config.json, metrics.jsonl, rollouts/,
    checkpoints/, eval_base.json, eval_final.json, report.md, report.html, *.png and model/.

  Raises:
    ValueError: settings, data and model do not fit together; one sentence, before any work.
  """
  # The reward first: a name that is wrong must not leave a run folder behind.
  with load_reward(config.reward, config.reward_config) as reward:
    return _train(config, reward)


def _train(config: RunConfig, reward: Reward) -> Path:
  run = Run(config)
  with Checkpoints(config.run_dir, config.keep_checkpoints) as checkpoints:
    state, tokens = run.start(checkpoints)
    first = int(state.step)
    if not (run.dir / "eval_base.json").exists():
      evaluate_all(run, "base", state.params, reward)
    with Tracking(run.dir, config.track, start_step=first, config=run.record) as tracking:
      bar = tqdm(range(first, config.steps), "GRPO", config.steps, initial=first, unit="step")
      for step in profiled_steps(bar, run.dir, config.profile):
        state, metrics = run.step(step, state, reward)
        tokens += metrics.pop("tokens")
        metrics["num_tokens"] = tokens
        done = step + 1
        if config.eval_every and done % config.eval_every == 0 and done < config.steps:
          metrics |= held_out_rewards(run, state.params, reward)
        tracking.log(step, metrics)
        bar.set_postfix(
          reward=f"{metrics['reward']:.3f}", tokens_s=f"{metrics['tokens_per_second']:.0f}"
        )
        if done % config.checkpoint_every == 0 or done == config.steps:
          checkpoints.save(state, {"num_tokens": tokens})
    evaluate_all(run, "final", state.params, reward)
  save_pretrained(run.policy, state.params, run.dir / "model", tokenizer=run.tokenizer)
  write_report(run.dir)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  log.info(
    "%d sampling and %d update programs compiled; peak memory %.2f GiB",
    len(run.sample_shapes), len(run.update_shapes), peak,
  )  # fmt: skip
  return run.dir


def evaluate_all(run: Run, when: str, params: Params, reward: Reward) -> None:
  """Scores every held-out split and writes eval_<when>.json and eval/<when>_<split>.jsonl."""
  summaries = {}
  (run.dir / "eval").mkdir(exist_ok=True)
  for split, tasks in run.held_out.items():
    log.info("evaluating %d held-out tasks (%s, %s)", len(tasks), split, when)
    summaries[split], rows = _evaluated(run, params, tasks, reward)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (run.dir / "eval" / f"{when}_{split}.jsonl").write_text(text, encoding="utf-8")
  path = run.dir / f"eval_{when}.json"
  path.write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")


def held_out_rewards(run: Run, params: Params, reward: Reward) -> dict[str, float]:
  """Mean reward on every held-out split, as metrics."""
  return {
    f"eval/{split}/reward": _evaluated(run, params, tasks, reward)[0]["reward_mean"]
    for split, tasks in run.held_out.items()
  }


def _evaluated(
  run: Run, params: Params, tasks: Sequence[ToolTask], reward: Reward
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  # A score on held-out tasks stands for itself; normalising would compare unrelated prompts.
  plain = reward.unnormalised() if isinstance(reward, CombinedReward) else reward
  return evaluate(
    run.policy,
    params,
    run.tokenizer,
    tasks,
    reward=plain,
    max_prompt_tokens=run.config.max_prompt_tokens,
    max_completion_tokens=run.grpo.sampling.max_tokens,
    stop_ids=run.stop_ids,
    seed=run.config.seed,
  )
