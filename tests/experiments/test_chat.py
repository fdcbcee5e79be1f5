"""The terminal chat: what is streamed, what is said of calls, and a whole conversation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grpo_jax.models import DecoderConfig, init_params, save_pretrained
from grpo_jax.rewards import PARSE_ERRORS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments/chat.py"
TOOL = {
  "type": "function",
  "function": {
    "name": "book",
    "parameters": {
      "type": "object",
      "properties": {"city": {"type": "string"}, "nights": {"type": "integer"}},
      "required": ["city"],
    },
  },
}
TEMPLATE = (
  "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
  "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A random decoder over bytes."""
  folder = tmp_path_factory.mktemp("model")
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  byte_level = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
  byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  byte_level.decoder = decoders.ByteLevel()
  byte_level.add_special_tokens([AddedToken("<|end|>")])
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=byte_level, eos_token="<|end|>", chat_template=TEMPLATE
  )
  config = DecoderConfig(257, 16, 32, 1, 2, 1, 8, eos_token_ids=(256,))
  params = jax.tree.map(lambda x: 30 * x, init_params(config, jax.random.key(3)))
  save_pretrained(config, params, folder, tokenizer)
  return folder


def _run(*arguments, text=None):
  environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
  return subprocess.run(
    [sys.executable, *map(str, arguments)],
    input=text,
    capture_output=True,
    text=True,
    encoding="utf-8",
    env=environment,
  )


PROGRAM = """
import json, pathlib, runpy, sys
import jax
from grpo_jax.models import load_pretrained
from grpo_jax.sampling import SamplingConfig, generate
from grpo_jax.tasks.schema import ToolSpec
from grpo_jax.tasks import load_tokenizer
chat = runpy.run_path(sys.argv[1])
config, params = load_pretrained(sys.argv[2])
tokenizer = load_tokenizer(sys.argv[2])
key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), 0)
prompt = list(b"[user]hello")
streamed, generated = [], []
for temperature in (0.0, 2.0):
  cfg = SamplingConfig(1, 12, temperature, stop_ids=(256,))
  streamed.append(list(chat["stream"](config, params, prompt, key, cfg)))
  options = {"max_tokens": 12, "temperature": temperature, "seed": 5, "stop_ids": (256,)}
  generated.append(generate(config, params, [prompt], batch_prompts=1, **options)[0][0])
ids = tokenizer("a \\u00e9\\U0001f642!")["input_ids"]
cut = ids[:-2]
tools = [ToolSpec.from_json(json.loads(sys.argv[3]))]
said = {text: chat["verdict"](text, tools, "strict") for text in json.loads(sys.argv[4])}
refused = {}
for content in json.loads(sys.argv[5]):
  pathlib.Path(sys.argv[6]).write_text(content)
  try:
    chat["read_tools"](sys.argv[6])
  except ValueError as error:
    refused[content] = str(error)
cfg = SamplingConfig(1, 5, 0.0, stop_ids=(256,))
asked = tokenizer("[user]Hi[assistant]")["input_ids"]
answer = chat["stream"](config, params, asked, key, cfg)
typed = tokenizer(["[user]Hi<", "|end|>[assistant]"])["input_ids"]
typed = chat["stream"](config, params, sum(typed, []), key, cfg)
print(json.dumps({
  "streamed": streamed, "generated": generated,
  "pieces": list(chat["text_pieces"](tokenizer, iter([*ids, 256, 65]), (256,))),
  "cut": "".join(chat["text_pieces"](tokenizer, iter(cut), (256,))),
  "said": said, "refused": refused,
  "answer": "".join(chat["text_pieces"](tokenizer, answer, (256,))),
  "typed": "".join(chat["text_pieces"](tokenizer, typed, (256,))),
}))
"""
ANSWERS = {
  '[{"name": "book", "arguments": {"city": "Rome", "nights": 2}}]': [
    'book(city="Rome", nights=2)  valid'
  ],
  '[{"name": "book", "arguments": {"nights": "2", "pets": true}}]': [
    """book(nights="2", pets=true)  invalid: '2' is not of type 'integer'; """
    "'city' is a required property; 'pets' is not an argument of book"
  ],
  '[{"name": "fly", "arguments": {}}]': ["fly()  invalid: there is no tool 'fly'"],
  '[{"name": "book", "arguments"': [f"not a valid call: {PARSE_ERRORS['bad_json']}"],
  "Which city?": [],
}
BAD_TOOLS = {
  "{": "Expecting property name",
  '{"a": 1}': "expected a JSON list",
  '[{"description": "x"}]': '"name"',
  '[{"name": "f", "parameters": {"type": "nonsense"}}]': "nonsense",
  '[{"name": "f", "name": "g", "parameters": {}}]': "the key 'name' stands twice",
}


@pytest.fixture(scope="module")
def parts(model, tmp_path_factory):
  texts = (json.dumps(value) for value in (TOOL, list(ANSWERS), list(BAD_TOOLS)))
  arguments = (SCRIPT, model, *texts, tmp_path_factory.mktemp("tools") / "tools.json")
  done = _run("-c", PROGRAM, *arguments)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_streamed_tokens_are_those_of_the_sampler(parts):
  assert parts["streamed"] == parts["generated"]
  greedy, sampled = parts["streamed"]
  assert greedy != sampled


def test_text_comes_in_whole_characters_up_to_the_stop_token(parts):
  assert parts["pieces"] == ["a", " ", "é", "🙂", "!", ""]
  assert parts["cut"] == "a é\N{REPLACEMENT CHARACTER}"  # a character that never ends is not hidden


@pytest.mark.parametrize("answer", ANSWERS)
def test_calls_are_shown_with_their_validity(parts, answer):
  assert sorted(parts["said"][answer]) == sorted(ANSWERS[answer])


def test_a_conversation_can_be_started_over(model, parts):
  done = _run(
    SCRIPT, f"--model={model}", "--max_tokens=5", text="Hi\n\nHi\n/reset\nHi\n/quit\nHi\n"
  )
  assert done.returncode == 0, done.stderr
  first, rest = parts["answer"], done.stdout.removeprefix(parts["answer"] + "\n")
  assert rest != done.stdout
  assert rest.endswith(
    "\n" + first + "\n"
  )  # the second answer saw the first turn, this one did not
  assert not rest.startswith(first)
  assert "computed in float32" in done.stderr.splitlines()


VERDICT = """
import json, runpy, sys
from grpo_jax.tasks.schema import ToolSpec
verdict = runpy.run_path(sys.argv[1])["verdict"]
for parameters in json.loads(sys.argv[2]):
  tool = ToolSpec.from_json({"name": "f", "parameters": parameters})
  print(json.dumps(verdict('[{"name": "f", "arguments": {"a": "x"}}]', [tool], "strict")))
"""


def test_a_schema_that_cannot_be_used_is_said_and_nothing_is_fetched():
  asked = []

  class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)
      self.send_response(200)
      self.end_headers()
      self.wfile.write(b'{"type": "string"}')

    def log_message(self, format, *args):
      return

  server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  remote = f"http://127.0.0.1:{server.server_port}/schema.json"
  cases = [
    ({"$ref": "#/$defs/none"}, "PointerToNowhere: '/$defs/none' does not exist"),
    ({"$ref": remote}, f"Unresolvable: {remote}"),
    ({"$dynamicRef": remote}, f"Unresolvable: {remote}"),
    ({"$id": remote, "$ref": "other.json"}, "Unresolvable: other.json"),
    ({"$ref": "#/properties/a"}, "maximum recursion depth exceeded"),
    ({"$ref": "#/type"}, "'str' object has no attribute"),
    ({"$ref": "#/$defs/text"}, None),
  ]
  schemas = [
    {"type": "object", "properties": {"a": schema}, "$defs": {"text": {"type": "string"}}}
    for schema, _ in cases
  ]
  done = _run("-c", VERDICT, SCRIPT, json.dumps(schemas))
  server.shutdown()
  server.server_close()
  assert done.returncode == 0, done.stderr
  assert not asked
  for line, (_, wanted) in zip(done.stdout.splitlines(), cases, strict=True):
    (said,) = json.loads(line)
    judged = f"not checked: the schema of f cannot be used: {wanted}" if wanted else "valid"
    assert said.startswith(f'f(a="x")  {judged}'), said


def test_a_special_token_that_is_typed_is_text_unless_it_is_asked_for(model, parts):
  flags = (f"--model={model}", "--max_tokens=5")
  plain, token = (
    _run(SCRIPT, *flags, f"--plain_user_text={on}", text="Hi<|end|>\n") for on in ("true", "false")
  )
  assert (plain.returncode, token.returncode) == (0, 0), plain.stderr
  assert plain.stdout.rstrip("\n") == parts["typed"] != token.stdout.rstrip("\n")
  assert _run(SCRIPT, *flags, text="Hi<|end|>\n").stdout == plain.stdout


@pytest.mark.parametrize("content", BAD_TOOLS)
def test_a_bad_tools_file_is_named_in_one_sentence(parts, content):
  (said,) = parts["refused"][content].splitlines()
  assert said.startswith("--tools=")
  assert BAD_TOOLS[content] in said


def test_an_error_ends_in_one_sentence(tmp_path):
  done = _run(SCRIPT, f"--tools={tmp_path / 'nothing.json'}", text="")
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("chat: ")
