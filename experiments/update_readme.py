"""Writes the README's table of results anew from the folders in experiments/results.

python experiments/update_readme.py
"""

import re
from pathlib import Path

from absl import app

from grpo_jax import command_line
from grpo_jax.files.atomic import write_text
from grpo_jax.report.stages import results_table

RESULTS = Path(__file__).with_name("results")
README = RESULTS.parents[1] / "README.md"
BLOCK = re.compile(r"(?<=<!-- qwen -->\n).*?(?=<!-- /qwen -->)", re.DOTALL)


def updated(text: str) -> str:
  """The README with the table of the results that are there."""
  folders = sorted(path.parent for path in RESULTS.glob("*/eval_base.json"))
  table = results_table(folders)
  return BLOCK.sub(lambda _: f"{table.title}:\n\n{table.markdown}\n", text)


@command_line.script()
def main(argv: list[str]) -> None:
  write_text(README, updated(README.read_text(encoding="utf-8")))


if __name__ == "__main__":
  app.run(main)
