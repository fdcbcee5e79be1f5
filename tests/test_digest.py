"""Six steps of the embedded policy give the numbers that they gave before.

A change that is not meant to change numbers leaves them as they are, and one that is says so and
writes the new ones down: run this file as a script.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
import jaxlib
import numpy as np
from as_users_do import called_as_users_do

from grpo_jax.config import GRPOConfig, RunConfig, SamplingConfig
from grpo_jax.rewards import load_reward
from grpo_jax.runs.installation import processor
from grpo_jax.train import read_data, set_up, take_step

RECORD = Path(__file__).with_suffix(".json")
STEPS = 6
# As --preset=tiny, but small: groups with and without spread, idle ones left out.
CONFIG = RunConfig(
  run_dir="unused",
  eval_data=(),
  steps=STEPS,
  prompts_per_step=4,
  max_prompt_tokens=448,
  learning_rate=1e-4,
  warmup_steps=2,
  grpo=GRPOConfig(
    sampling=SamplingConfig(group_size=6, max_tokens=64, temperature=0.7),
    aggregation="token",
    micro_batch_prompts=2,
  ),
)


def digest() -> dict:
  """Rewards, losses and the weights after the last step."""
  found: dict = {"rewards": [], "losses": [], "grad_norms": []}
  setup, state = set_up(read_data(CONFIG))
  with load_reward(CONFIG.reward, CONFIG.reward_config) as reward:
    for step in range(STEPS):
      state, record = take_step(setup, state, step, reward)
      found["rewards"].append(record.scored.rewards.tolist())
      found["losses"].append(record.metrics["loss"])
      found["grad_norms"].append(record.metrics["grad_norm"])
  leaves = [np.asarray(x) for x in jax.tree.leaves(state.params)]
  # One number of each parameter that any change of it moves.
  found["weights"] = [float(np.vdot(np.cos(np.arange(x.size)), x.ravel())) for x in leaves]
  bits = hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()
  return found | {"sha256": {machine(): bits}}


def machine() -> str:
  """What the last bits depend on: the processor and the compiler."""
  return f"{processor()}, jaxlib {jaxlib.__version__}"


def test_six_steps_give_the_numbers_that_they_gave():
  wanted, found = json.loads(RECORD.read_text()), called_as_users_do(digest)
  assert found["rewards"] == wanted["rewards"]  # so every sampled token counts
  assert len({str(rewards) for rewards in wanted["rewards"]}) == STEPS
  for name in ("losses", "grad_norms"):
    np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(found["weights"], wanted["weights"], rtol=1e-5, atol=1e-4)
  here = machine()  # on another processor or jaxlib the last bits may be others
  assert found["sha256"][here] == wanted["sha256"].get(here, found["sha256"][here])


if __name__ == "__main__":
  RECORD.write_text(json.dumps(digest(), indent=1) + "\n")
