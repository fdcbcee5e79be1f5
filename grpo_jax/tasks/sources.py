"""Where tasks come from: a file, a hub id, or the generator."""

from grpo_jax.tasks.jsonl import load_tasks
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.synthetic.splits import SPLITS, generate

SYNTHETIC = "synthetic:"


def read_tasks(source: str, seed: int) -> list[ToolTask]:
  """Reads tasks from a file or hub id, or generates them for `synthetic:<split>`.

  Args:
    source: as `--data` takes it.
    seed: of generated tasks.

  Raises:
    ValueError: an unknown split, or a row that is no task.
  """
  if source.startswith(SYNTHETIC):
    split = source.removeprefix(SYNTHETIC)
    if split not in SPLITS:
      raise ValueError(f"{source}: expected {SYNTHETIC} and one of {', '.join(SPLITS)}")
    return [ToolTask.from_row(row) for row in generate(seed, split)]
  return load_tasks(source)
