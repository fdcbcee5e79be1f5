"""One run's model, data, optimizer and compiled step: what `training.train` drives."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import hosts
from grpo_jax.checkpoints import Checkpoints
from grpo_jax.config import RunConfig, changed_settings, recorded_date, run_record
from grpo_jax.data.batches import batch_at
from grpo_jax.data.jsonl import data_sha256, load_tasks
from grpo_jax.data.summary import data_summary
from grpo_jax.data.synthetic import SPLITS
from grpo_jax.data.synthetic import generate as generate_rows
from grpo_jax.grpo import (
  grpo_step,
  kl_to_reference,
  reference_program,
  resolve,
  step_key,
  update_program,
)
from grpo_jax.models import Params, init_adapters, load_config, load_pretrained, with_adapters
from grpo_jax.optimizers import make_optimizer, make_schedule, steps_taken
from grpo_jax.rewards import Reward, RewardBreakdown
from grpo_jax.rollout_log import rollout_metrics, write_bad_step, write_rollouts
from grpo_jax.rollout_scores import reached_limit, score_rollout
from grpo_jax.run_folder import whole_lines, write_text
from grpo_jax.sampling import cut_to_bucket, pad_to_bucket, sample_program
from grpo_jax.schema import ToolTask
from grpo_jax.sharding import (
  batch_parts,
  batch_sharding,
  make_mesh,
  parameter_sharding,
  state_shardings,
)
from grpo_jax.text import completion_text, load_tokenizer, render, stop_token_ids
from grpo_jax.types import Rollout, TrainState

SYNTHETIC = "synthetic:"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collected:
  """What sampling and scoring leave for the record of a step.

  Attributes:
    drawn: the completions as NumPy arrays, uncut.
    texts: P * G of them, group after group.
    breakdowns: what the reward says of each.
    failures: metrics of what could not be scored.
    rewards: [P, G] float32.
    sampled: when the completions were there, in seconds of `time.perf_counter`.
    scored: when their rewards were.
  """

  drawn: Rollout
  texts: Sequence[str]
  breakdowns: Sequence[RewardBreakdown]
  failures: Mapping[str, float]
  rewards: np.ndarray
  sampled: float
  scored: float


class Run:
  """What stays the same over a run: model, data, optimizer, mesh and compiled functions."""

  def __init__(self, config: RunConfig) -> None:
    config = dataclasses.replace(config, template_date=_template_date(config))
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
    self.prompts = [self._render(task) for task in self.tasks]
    self._check_lengths()
    sources = {"train": self.tasks, **self.held_out}
    self.record = run_record(config, {name: data_sha256(t) for name, t in sources.items()})
    self._check_folder()

    shape = load_config(config.model)
    # Master weights are float32; a frozen base is only ever read in the compute dtype.
    self.policy, self.params = load_pretrained(
      config.model,
      config.dtype if config.lora else "float32",
      sharding=parameter_sharding(shape, self.mesh),
    )
    self.policy = dataclasses.replace(self.policy, dtype=config.dtype)
    self.base: Params | None = None
    if config.lora:
      self.base, self.params = self.params, self._fresh_adapters()
    self.grpo = resolve(config.grpo, self.policy, self.mesh, self.stop_ids)
    # The optimizer counts its own steps, of which a training step may take several.
    per_step = config.grpo.inner_updates * config.grpo.minibatches
    self.schedule = make_schedule(
      config.learning_rate, config.warmup_steps, config.decay, config.steps * per_step
    )
    self.tx = make_optimizer(config, self.schedule)
    self._traceback_shown = False
    self._decode = lambda ids: completion_text(self.tokenizer, ids, self.stop_ids)
    self.sample_shapes: set[int] = set()
    self.update_shapes: set[tuple[int, int]] = set()
    self._sample = sample_program(
      self.policy,
      self.mesh,
      self.grpo.sampling,
      config.lora,
      gather_weights=self.grpo.gather_weights,
    )
    self._update = update_program(self.policy, self.mesh, self.tx, self.grpo, config.lora)
    self._reference = reference_program(self.policy, self.mesh, self.grpo)

  def fresh_state(self) -> TrainState:
    """The state of step 0; takes the loaded parameters, so it can be made once."""
    opt_state = jax.jit(
      self.tx.init,
      out_shardings=state_shardings(
        self.policy, self.mesh, jax.eval_shape(self.tx.init, self.params)
      ),
    )(self.params)
    everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
    first = lambda: (jnp.int32(0), jax.random.key(self.config.seed))
    step, key = jax.jit(first, out_shardings=everywhere)()
    # The reference is kept only where it is needed; it must survive the donated state.
    needed = self.grpo.kl_weight or self.config.kl_every
    self.ref_params = (self.base or jax.tree.map(jnp.copy, self.params)) if needed else None
    state = TrainState(self.params, opt_state, step, key)
    del self.params
    return state

  def start(
    self, checkpoints: Checkpoints, begin: Callable[[Params], None] = lambda params: None
  ) -> tuple[TrainState, int]:
    """The state to begin with, fresh or of the newest good checkpoint, and the tokens so far.

    A checkpoint counts only as far as metrics.jsonl is whole, so that the file ends up complete.
    Here the run begins: config.json is written, and the checkpoints after that one are deleted.

    Args:
      checkpoints: of the run folder.
      begin: called with the parameters of step 0 before a checkpoint takes their place.

    Raises:
      ValueError: there are checkpoints, but they must not or cannot be gone on from.
    """
    if self.config.resume == "never" and checkpoints.steps():
      raise ValueError(f"{self.dir} has checkpoints and --resume=never; choose another --run_dir")
    newest = hosts.from_first(self._newest_step(checkpoints) if hosts.is_first() else 0)
    if hosts.is_first():
      self.dir.mkdir(parents=True, exist_ok=True)
      write_text(self.dir / "config.json", json.dumps(self.record, indent=2) + "\n")
    state = self.fresh_state()
    checkpoints.drop_after(newest)
    begin(state.params)
    if not newest:
      return state, 0
    state, meta = checkpoints.restore(newest, state)
    log.info("continuing %s at step %d", self.dir, newest)
    return state, int(meta["num_tokens"])

  def _newest_step(self, checkpoints: Checkpoints) -> int:
    """The step of the newest checkpoint to go on from; 0 where the run has none yet."""
    lines = len(whole_lines(self.dir / "metrics.jsonl"))
    good, steps = checkpoints.newest_good(limit=lines), checkpoints.steps()
    # To die amid the first checkpoint costs no more than to die before it.
    first_only = max(steps, default=0) <= self.config.checkpoint_every
    if good is None and not (first_only and all(map(checkpoints.is_cut_off, steps))):
      raise ValueError(
        f"{self.dir} has checkpoints of steps {', '.join(map(str, steps))} and none to go on from "
        f"({checkpoints.problem(steps[-1], lines)}): put back what is missing or damaged, or "
        f"remove {self.dir / 'checkpoints'} to start over"
      )
    return good or 0

  def step(
    self, step: int, state: TrainState, reward: Reward, between: Callable[[], None] = lambda: None
  ) -> tuple[TrainState, dict[str, float]]:
    """One GRPO step, timed by phase; its numbers depend on (seed, step) and the state only.

    Args:
      step: its number, from 0.
      state: donated, but only after the last call of `between`.
      reward: what scores the completions.
      between: called before each phase; may raise to give the step up with `state` unharmed.

    Returns:
      The state after and the step's metrics.
    """
    between()
    began = time.perf_counter()
    count = self.config.prompts_per_step
    chosen = batch_at(
      step, num_tasks=len(self.tasks), prompts_per_step=count, seed=self.config.seed
    )
    tasks = [self.tasks[i] for i in chosen]
    arrays = pad_to_bucket([self.prompts[i] for i in chosen], self.grpo.sampling.pad_id)
    prompts = jax.device_put(arrays, batch_sharding(self.mesh))
    ready = time.perf_counter()

    collected: list[Collected] = []

    def collect(state, prompts):
      rollout = self._sample(state.params, self.base, prompts, step_key(state))
      drawn = hosts.fetch(rollout)
      sampled = time.perf_counter()
      between()
      texts, breakdowns, failures, rewards = self._decode_and_score(drawn, tasks, reward)
      scored = time.perf_counter()
      collected.append(Collected(drawn, texts, breakdowns, failures, rewards, sampled, scored))
      between()
      return cut_to_bucket(rollout, int(drawn.completion_mask.sum(-1).max())), rewards

    rate = float(self.schedule(steps_taken(state.opt_state)))  # of the first of its updates
    score_reference = lambda rollout: self._reference(self.ref_params, rollout)
    state, found, rollout, _ = grpo_step(
      state,
      prompts,
      collect=collect,
      update=lambda state, batch: self._update(state, batch, self.base),
      reference=score_reference if self.grpo.kl_weight else lambda rollout: None,
      settings=self.grpo,
    )
    [seen] = collected
    if self.config.kl_every and not self.grpo.kl_weight and step % self.config.kl_every == 0:
      found["kl"] = kl_to_reference(rollout, score_reference(rollout))
    metrics = {name: float(value) for name, value in found.items()}
    self.sample_shapes.add(prompts.tokens.shape[1])
    self.update_shapes.add((prompts.tokens.shape[1], rollout.tokens.shape[2]))
    updated = time.perf_counter()

    cut = reached_limit(seen.drawn, self.grpo.sampling.max_tokens, self.stop_ids)
    mask = np.asarray(seen.drawn.completion_mask)
    metrics |= rollout_metrics(mask, seen.rewards, seen.breakdowns, cut)
    metrics |= seen.failures
    metrics["learning_rate"] = rate
    if hosts.is_first():
      write_rollouts(self.dir, step, tasks, seen.texts, seen.breakdowns, seen.rewards, self.grpo)
      if metrics["skipped_updates"]:
        log.warning(
          "no finite update: see %s", write_bad_step(self.dir, step, seen.drawn, seen.rewards)
        )
    ended = time.perf_counter()
    metrics |= {
      "seconds/sample": seen.sampled - ready,
      "seconds/reward": seen.scored - seen.sampled,
      "seconds/update": updated - seen.scored,
      "seconds/other": (ready - began) + (ended - updated),
      "step_time": ended - began,
      "tokens_per_second": metrics["tokens"] / (ended - began),
    }
    return state, metrics

  def _decode_and_score(
    self, drawn: Rollout, tasks: Sequence[ToolTask], reward: Reward
  ) -> tuple[list[str], list[RewardBreakdown], dict[str, float], np.ndarray]:
    """Texts, breakdowns and failures of `score_rollout`, and the rewards [P, G] float32."""
    texts, found, failures, said = score_rollout(drawn, tasks, reward, self._decode)
    self._show_failure(said)
    totals = np.asarray([breakdown.total for breakdown in found], np.float32)
    return texts, found, failures, totals.reshape(drawn.tokens.shape[:2])

  def _show_failure(self, said: str) -> None:
    """Logs what the first failure of a reward said, and keeps it in the run folder."""
    if said and not self._traceback_shown and hosts.is_first():
      log.warning("a reward failed:\n%s", said)
      write_text(self.dir / "first_reward_failure.txt", said)
      self._traceback_shown = True

  def assemble(self, trained: Params) -> Params:
    """The decoder's parameters: what is trained, or the frozen base with its adapters laid over."""
    return with_adapters(trained, self.base, self.config.lora)

  def _fresh_adapters(self) -> Params:
    assert self.config.lora is not None
    draw = functools.partial(init_adapters, self.policy, self.config.lora)
    key = jax.random.fold_in(jax.random.key(self.config.seed), 2**32 - 1)  # no step has this number
    placed = state_shardings(self.policy, self.mesh, jax.eval_shape(draw, key))
    return jax.jit(draw, out_shardings=placed)(key)

  def _render(self, task: ToolTask) -> list[int]:
    date, plain = self.config.template_date, self.config.plain_user_text
    return render(self.tokenizer, task, date=date, plain_user_text=plain)

  def _check_lengths(self) -> None:
    """Shows what each split holds, and refuses prompts over the limit before any work."""
    limit = self.config.max_prompt_tokens
    for split, tasks in {"train": self.tasks, **self.held_out}.items():
      prompts = self.prompts if split == "train" else [self._render(task) for task in tasks]
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

  def _check_folder(self) -> None:
    """Checks that the folder, if there is one, belongs to the same run."""
    path = self.dir / "config.json"
    if path.exists():
      try:
        old = json.loads(path.read_text(encoding="utf-8"))
      except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to go on as you say") from error
      changed = "; ".join(changed_settings(old, self.record))
      if changed and not self.config.allow_changes:
        raise ValueError(
          f"{self.dir} holds a run with other settings: {changed}. Choose another --run_dir, or "
          "--allow_changes to go on all the same"
        )
      if changed:
        log.warning("going on with other settings: %s", changed)


def _template_date(config: RunConfig) -> str:
  """The day that templates show: as it is set, else as the run began with it, else today."""
  told = config.template_date or recorded_date(config.run_dir)
  day = datetime.date.fromisoformat(told) if told else datetime.date.today()
  return datetime.date.fromordinal(hosts.from_first(day.toordinal())).isoformat()


def read_tasks(source: str, seed: int) -> list[ToolTask]:
  """Reads tasks from a file or hub id, or generates them for `synthetic:<split>`."""
  if source.startswith(SYNTHETIC):
    split = source.removeprefix(SYNTHETIC)
    if split not in SPLITS:
      raise ValueError(f"{source}: expected {SYNTHETIC} and one of {', '.join(SPLITS)}")
    rows = generate_rows(seed, split)
    return [ToolTask.from_row(row) for row in rows]
  return load_tasks(source)
