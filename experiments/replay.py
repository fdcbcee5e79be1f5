"""Does a step of a run again and says whether it equals what was recorded.

    python experiments/replay.py --run=runs/mine --step=12

Starts from the nearest checkpoint before the step (or from the model) and writes nothing into the
run folder. A custom reward of the run is executed: replay only runs whose reward you trust.
"""

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.replay import replay

FLAGS = flags.FLAGS
flags.DEFINE_string("run", None, "the run folder", required=True)
flags.DEFINE_integer("step", None, "the step to do again, from 0", required=True, lower_bound=0)


@command_line.script()
def main(argv: list[str]) -> int:
  found = replay(FLAGS.run, FLAGS.step)
  print(f"step {found.step}, reached from step {found.start}")
  if found.recorded_by:
    print(f"  recorded by {found.recorded_by}; equal to {found.difference:.0e}")
  for part, same in found.equal.items():
    print(f"  {part:<12} {'equal' if same else 'DIFFERENT'}")
  for note in found.notes:
    print(f"  {note}")
  return 0 if all(found.equal.values()) else 1


if __name__ == "__main__":
  app.run(main)
