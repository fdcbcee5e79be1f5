"""Tunix's GRPOLearner on the benchmark's workload: python tunix_grpo.py WORK.json"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from transformers import PreTrainedTokenizerFast
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as qwen2_params
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout import base_rollout
from turns import Turns, rewards

turns = Turns()
work = turns.work
shape = json.loads((Path(work["model"]) / "config.json").read_text(encoding="utf-8"))
dtype = jnp.dtype(work["dtype"])
config = qwen2.ModelConfig(
  num_layers=shape["num_hidden_layers"],
  vocab_size=shape["vocab_size"],
  embed_dim=shape["hidden_size"],
  hidden_dim=shape["intermediate_size"],
  num_heads=shape["num_attention_heads"],
  head_dim=shape["head_dim"],
  num_kv_heads=shape["num_key_value_heads"],
  rope_theta=int(shape["rope_theta"]),
  norm_eps=shape["rms_norm_eps"],
  use_tied_embedding=shape["tie_word_embeddings"],
  dtype=dtype,
  param_dtype=dtype,
  remat_config=qwen2.RematConfig.NONE,
)
mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
actor = qwen2_params.create_model_from_safe_tensors(work["model"], config, mesh, dtype=dtype)
prompts, length = work["prompts"], work["completion_tokens"]
cluster = rl_cluster.RLCluster(
  actor=actor,
  reference=None,
  tokenizer=PreTrainedTokenizerFast.from_pretrained(work["model"]),
  cluster_config=rl_cluster.ClusterConfig(
    role_to_mesh={
      rl_cluster.Role.ACTOR: mesh,
      rl_cluster.Role.REFERENCE: mesh,
      rl_cluster.Role.ROLLOUT: mesh,
    },
    rollout_engine="vanilla",
    training_config=rl_cluster.RLTrainingConfig(
      actor_optimizer=optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(work["learning_rate"])
      ),
      eval_every_n_steps=10**6,
      max_steps=len(work["steps"]),
      mini_batch_size=prompts,
      # A micro-batch of one prompt, that is one group, was the fastest of those tried.
      train_micro_batch_size=1,
      rollout_micro_batch_size=prompts,
      compute_logps_micro_batch_size=1,
    ),
    rollout_config=base_rollout.RolloutConfig(
      max_tokens_to_generate=length,
      max_prompt_length=work["prompt_tokens"],
      kv_cache_size=work["prompt_tokens"] + length,
      temperature=work["temperature"],
      top_p=1.0,
      eos_tokens=work["stop_ids"] or [-1],  # -1: never stop early
    ),
  ),
)


def reward(prompts, completions, wanted=None, **kwargs):
  return rewards(completions, wanted)


learner = GRPOLearner(
  cluster,
  GRPOConfig(num_generations=work["group_size"], num_iterations=1, beta=0.0, epsilon=0.2),
  reward,
)
score, run_step = learner._generate_and_compute_advantage, learner._run_global_step


def step(*args, **kwargs):
  turns.wait()
  run_step(*args, **kwargs)
  jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))
  turns.trained()


# The stop token is cut off: it is there wherever a completion ends early.
sampled = lambda out: sum(min(len(ids) + 1, length) for ids in out.tokens)
cluster.generate = turns.timed("sample", cluster.generate, sampled)
learner._generate_and_compute_advantage = turns.timed(
  "score", lambda *args, **kwargs: jax.block_until_ready(score(*args, **kwargs))
)
learner._run_global_step = step
turns.ready()
batches = [{"prompts": np.array(texts)} for texts in work["steps"]]
for batch, wanted in zip(batches, work["wanted"] or [], strict=False):
  batch["wanted"] = np.array(wanted)
learner.train(batches)
