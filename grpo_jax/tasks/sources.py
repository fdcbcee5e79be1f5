"""Where tasks come from: a file, a hub id, or a generator."""

from typing import Any

from grpo_jax.tasks.jsonl import load_tasks
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.synthetic.natural import NATURAL_SPLITS, generate_natural
from grpo_jax.tasks.synthetic.splits import SPLITS, generate


def read_tasks(source: str, seed: int) -> list[ToolTask]:
  """Reads tasks from a file or hub id, or generates them for `synthetic:` or `natural:<split>`.

  Args:
    source: as `--data` takes it.
    seed: of generated tasks.

  Raises:
    ValueError: an unknown split, or a row that is no task.
  """
  register, colon, split = source.partition(":")
  if not colon or register not in ("synthetic", "natural"):
    return load_tasks(source)
  splits: tuple[str, ...] = NATURAL_SPLITS if register == "natural" else SPLITS
  if split not in splits:
    raise ValueError(f"{source}: expected {register}: and one of {', '.join(splits)}")
  make: Any = generate_natural if register == "natural" else generate
  return [ToolTask.from_row(row) for row in make(seed, split)]
