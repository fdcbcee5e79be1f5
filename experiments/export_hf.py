"""Writes a policy as a Hugging Face folder that transformers and vLLM load.

python experiments/export_hf.py --model=runs/my_run/model --out=exported --dtype=bfloat16

A run leaves such a folder at `model/` (a LoRA run `adapter/`); this script stores one in another
dtype or shard size, makes a plain folder out of a hub id, or merges LoRA adapters into their base.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import app, flags

from grpo_jax import command_line
from grpo_jax.models import attach, load_adapters, load_pretrained, save_pretrained
from grpo_jax.tasks import load_tokenizer

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "checkpoint folder or hub id, optionally owner/name@revision")
flags.DEFINE_string("adapter", None, "folder of LoRA adapters (PEFT's format) to merge into it")
flags.DEFINE_string("out", None, "folder to write")
flags.DEFINE_enum(
  "dtype", None, ("float32", "bfloat16", "float16"), "of the weights; the checkpoint's by default"
)
flags.DEFINE_float("max_shard_gb", 5.0, "largest file, in 10^9 bytes", lower_bound=1e-6)
flags.mark_flags_as_required(["model", "out"])


@command_line.script()
def main(argv: list[str]) -> None:
  """Loads, writes and says what was written."""
  out = Path(FLAGS.out)
  if Path(FLAGS.model).resolve() == out.resolve():
    raise app.UsageError("--out is the folder of --model; an export must not overwrite its source")
  config, params = load_pretrained(FLAGS.model, dtype=FLAGS.dtype)
  if FLAGS.adapter:
    params = attach(params, *load_adapters(FLAGS.adapter, config))
  tokenizer = load_tokenizer(FLAGS.model)
  limit = int(FLAGS.max_shard_gb * 1e9)
  save_pretrained(config, params, out, tokenizer, dtype=config.dtype, max_shard_bytes=limit)
  files = sorted(out.glob("*.safetensors"))
  size = sum(file.stat().st_size for file in files)
  written = json.loads((out / "config.json").read_text(encoding="utf-8"))
  print(f"{out}: {written['architectures'][0]} in {written['torch_dtype']}, ", end="")
  print(f"{size / 1e9:.2f} GB in {len(files)} file{'s' * (len(files) > 1)}")


if __name__ == "__main__":
  app.run(main)
