"""One run's model, data, optimizer and compiled step: what `training.train` drives."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.checkpoints import Checkpoints
from grpo_jax.data.batches import batch_at, bucket_length, pad_prompts
from grpo_jax.data.jsonl import data_sha256, load_tasks
from grpo_jax.data.summary import data_summary
from grpo_jax.data.synthetic import generate as generate_rows
from grpo_jax.grpo import step_key
from grpo_jax.models import load_config, load_pretrained
from grpo_jax.programs import kl_program, learn_program, make_optimizer, resolve, sample_program
from grpo_jax.rewards import Reward, RewardBreakdown
from grpo_jax.rollout_log import rollout_metrics, write_rollouts
from grpo_jax.run_config import RunConfig, changed_settings, run_record
from grpo_jax.sampling import LENGTH_BUCKETS
from grpo_jax.schema import ToolTask
from grpo_jax.sharding import (
  batch_parts,
  batch_sharding,
  make_mesh,
  parameter_sharding,
  state_shardings,
)
from grpo_jax.text import completion_text, load_tokenizer, render, stop_token_ids
from grpo_jax.types import Prompts, Rollout, TrainState

SYNTHETIC = "synthetic:"
log = logging.getLogger(__name__)


class Run:
  """What stays the same over a run: model, data, optimizer, mesh and compiled functions."""

  def __init__(self, config: RunConfig) -> None:
    self.config = config
    self.dir = Path(config.run_dir)
    self.mesh = make_mesh(config.mesh)
    if config.prompts_per_step % batch_parts(self.mesh):
      raise ValueError(
        f"--mesh={config.mesh} splits prompts into {batch_parts(self.mesh)} parts, which do not "
        f"divide --prompts_per_step={config.prompts_per_step}"
      )
    self.tokenizer = load_tokenizer(config.model)
    self.stop_ids = stop_token_ids(self.tokenizer, config.model)
    self.tasks = read_tasks(config.data, config.data_seed)
    self.held_out = {
      name: read_tasks(source, config.data_seed)[: config.eval_limit or None]
      for name, source in config.eval_data
    }
    self.prompts = [render(self.tokenizer, task) for task in self.tasks]
    self._check_lengths()
    sources = {"train": self.tasks, **self.held_out}
    self.record = run_record(config, {name: data_sha256(t) for name, t in sources.items()})
    self._claim_folder()

    shape = load_config(config.model)
    self.policy, self.params = load_pretrained(
      config.model, sharding=parameter_sharding(shape, self.mesh)
    )
    self.policy = dataclasses.replace(self.policy, dtype=config.dtype)  # master weights: float32
    self.grpo = resolve(config.grpo, self.policy, self.mesh, self.stop_ids)
    self.tx, self.schedule = make_optimizer(
      config.learning_rate,
      warmup_steps=config.warmup_steps,
      weight_decay=config.weight_decay,
      clip_norm=config.clip_norm,
    )
    self._traceback_shown = False
    self.sample_shapes: set[int] = set()
    self.update_shapes: set[tuple[int, int]] = set()
    self._sample = sample_program(self.policy, self.mesh, self.grpo.sampling)
    self._learn = learn_program(self.policy, self.mesh, self.tx, self.grpo)
    self._kl = kl_program(self.policy, self.mesh, self.grpo)

  def start(self, checkpoints: Checkpoints) -> tuple[TrainState, int]:
    """The state to begin with and the tokens sampled so far: fresh, or the newest checkpoint's."""
    opt_state = jax.jit(
      self.tx.init,
      out_shardings=state_shardings(
        self.policy, self.mesh, jax.eval_shape(self.tx.init, self.params)
      ),
    )(self.params)
    everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
    step, key = jax.device_put((jnp.int32(0), jax.random.key(self.config.seed)), everywhere)
    # The reference is kept only where it is needed; it must survive the donated state.
    needed = self.grpo.kl_weight or self.config.kl_every
    self.ref_params = jax.tree.map(jnp.copy, self.params) if needed else None
    state = TrainState(self.params, opt_state, step, key)
    del self.params
    newest = checkpoints.latest()
    if newest is None:
      return state, 0
    if self.config.resume == "never":
      raise ValueError(f"{self.dir} has checkpoints and --resume=never; choose another --run_dir")
    state, meta = checkpoints.restore(newest, state)
    log.info("continuing %s at step %d", self.dir, newest)
    return state, int(meta["num_tokens"])

  def step(
    self, step: int, state: TrainState, reward: Reward
  ) -> tuple[TrainState, dict[str, float]]:
    """One GRPO step, timed by phase; its numbers depend on (seed, step) and the state only."""
    began = time.perf_counter()
    count = self.config.prompts_per_step
    chosen = batch_at(
      step, num_tasks=len(self.tasks), prompts_per_step=count, seed=self.config.seed
    )
    tasks = [self.tasks[i] for i in chosen]
    prompts = self._padded([self.prompts[i] for i in chosen])
    ready = time.perf_counter()
    rollout = jax.block_until_ready(self._sample(state.params, prompts, step_key(state)))
    self.sample_shapes.add(prompts.tokens.shape[1])
    sampled = time.perf_counter()

    failed_before = dict(reward.failures())
    texts, breakdowns, rewards = self._scored(rollout, tasks, reward)
    failures = self._new_failures(reward, failed_before)
    scored = time.perf_counter()

    rollout = self._shortened(rollout)
    self.update_shapes.add((prompts.tokens.shape[1], rollout.tokens.shape[2]))
    watched = self.config.kl_every and not self.grpo.kl_weight and step % self.config.kl_every == 0
    kl = {"kl": self._kl(self.ref_params, rollout)} if watched else {}
    state, found = self._learn(state, self.ref_params, rollout, rewards)
    found = {name: float(value) for name, value in (found | kl).items()}
    updated = time.perf_counter()

    metrics = rollout_metrics(np.asarray(rollout.mask), rewards, breakdowns, self._is_cut(rollout))
    metrics |= found | failures
    metrics["learning_rate"] = float(self.schedule(step + 1))
    write_rollouts(self.dir, step, tasks, texts, breakdowns, rewards, self.grpo.advantage)
    ended = time.perf_counter()
    metrics |= {
      "seconds/sample": sampled - ready,
      "seconds/reward": scored - sampled,
      "seconds/update": updated - scored,
      "seconds/other": (ready - began) + (ended - updated),
      "step_time": ended - began,
      "tokens_per_second": metrics["tokens"] / (ended - began),
    }
    return state, metrics

  def _scored(
    self, rollout: Rollout, tasks: Sequence[ToolTask], reward: Reward
  ) -> tuple[list[str], list[RewardBreakdown], np.ndarray]:
    """Texts and breakdowns of all P * G completions, and the rewards [P, G] float32."""
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    prompts, group, _ = tokens.shape
    texts = [
      completion_text(self.tokenizer, tokens[p, g][mask[p, g]].tolist(), self.stop_ids)
      for p in range(prompts)
      for g in range(group)
    ]
    breakdowns = reward.score_batch(texts, [task for task in tasks for _ in range(group)])
    totals = np.asarray([found.total for found in breakdowns], np.float32)
    return texts, breakdowns, totals.reshape(prompts, group)

  def _new_failures(self, reward: Reward, before: Mapping[str, int]) -> dict[str, float]:
    """How many completions of this step could not be scored, by code; the first one is kept."""
    new = {code: count - before.get(code, 0) for code, count in reward.failures().items()}
    if sum(reward.failures().values()) and not self._traceback_shown:
      log.warning("a reward failed: %s\n%s", dict(reward.failures()), reward.first_traceback)
      (self.dir / "first_reward_failure.txt").write_text(reward.first_traceback, encoding="utf-8")
      self._traceback_shown = True
    by_code = {f"rewards/failures/{code}": count for code, count in new.items()}
    return {"rewards/failures": sum(new.values()), **by_code}

  def _padded(self, prompts: Sequence[Sequence[int]]) -> Prompts:
    length = bucket_length(max(map(len, prompts)), LENGTH_BUCKETS)
    tokens, mask = pad_prompts(prompts, length, self.grpo.sampling.pad_id)
    arrays = Prompts(tokens, mask, np.arange(len(prompts), dtype=np.int32))
    return jax.device_put(arrays, batch_sharding(self.mesh))

  def _shortened(self, rollout: Rollout) -> Rollout:
    """Cuts the padding behind the longest completion, down to a bucket."""
    longest = int(np.asarray(rollout.mask).sum(-1).max())
    length = min(bucket_length(longest, LENGTH_BUCKETS), rollout.tokens.shape[2])
    cut = lambda x: x[..., :length]
    return Rollout(rollout.prompts, *(cut(x) for x in rollout[1:]))

  def _is_cut(self, rollout: Rollout) -> np.ndarray:
    """[P, G] bool: completions that reached the limit without a stop token."""
    tokens, lengths = np.asarray(rollout.tokens), np.asarray(rollout.mask).sum(-1)
    last = np.take_along_axis(tokens, (lengths - 1)[..., None], axis=-1)[..., 0]
    return (lengths >= self.grpo.sampling.max_tokens) & ~np.isin(last, self.stop_ids)

  def _check_lengths(self) -> None:
    """Shows what each split holds, and refuses prompts over the limit before any work."""
    limit = self.config.max_prompt_tokens
    for split, tasks in {"train": self.tasks, **self.held_out}.items():
      prompts = self.prompts if split == "train" else [render(self.tokenizer, t) for t in tasks]
      lengths = [len(prompt) for prompt in prompts]
      log.info("%s\n%s", split, data_summary(tasks, lengths, limit))
      if min(lengths) > limit:
        raise ValueError(
          f"--max_prompt_tokens={limit} is below the shortest prompt of {split}, which has "
          f"{min(lengths)} tokens"
        )
      if max(lengths) > limit:
        over = sum(length > limit for length in lengths)
        raise ValueError(
          f"{over} of {len(lengths)} prompts of {split} are longer than --max_prompt_tokens={limit}"
          f" (the longest has {max(lengths)} tokens); raise it or leave those tasks out"
        )
    log.info("%s", self.config.plan())

  def _claim_folder(self) -> None:
    """Writes config.json, or checks that the folder belongs to the same run."""
    path = self.dir / "config.json"
    if path.exists():
      changed = changed_settings(json.loads(path.read_text(encoding="utf-8")), self.record)
      if changed:
        raise ValueError(f"{self.dir} holds a run with other settings: {'; '.join(changed)}")
    self.dir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")


def read_tasks(source: str, seed: int) -> list[ToolTask]:
  """Reads tasks from a file or hub id, or generates them for `synthetic:<split>`."""
  if source.startswith(SYNTHETIC):
    rows: list[Mapping[str, Any]] = generate_rows(seed, source.removeprefix(SYNTHETIC))
    return [ToolTask.from_row(row) for row in rows]
  return load_tasks(source)
