"""The work that one GRPO step needs, counted from shapes alone.

What counts: matrix products (2 FLOPs a multiply-add, backward twice the forward), causal attention
(the lower triangle only), the output head where a token is predicted from it (one position a prompt
when encoding, T a completion in training), weights and keys and values read once a decoded token,
and AdamW's traffic. What does not: the last layer of prompt tokens that predict nothing, but for
their keys and values; each completion's last token; norms, biases, softmax, rotary embedding,
sampling, the rows of the embedding. So it is a lower bound, of any program.
"""

from dataclasses import dataclass

from grpo_jax.benchmarking.shapes import Workload
from grpo_jax.models import DecoderConfig, LoraConfig
from grpo_jax.models.parameters import adapter_parameters, layer_count

# Adam reads parameter, gradient and both moments and writes all but the gradient; the global norm
# reads the gradient once more. All of it float32.
OPTIMIZER_BYTES = 8 * 4


@dataclass(frozen=True)
class StepWork:
  """What one step has to compute and to move.

  Attributes:
    prefill_flops: encoding the prompts, and the head at each prompt's end.
    decode_flops: of each decoded token after the first, in order; [T - 1].
    decode_bytes: weights, keys and values read for each of them; [T - 1].
    training_flops: forward and backward pass over prompts and completions.
    optimizer_bytes: gradient norm and AdamW.
  """

  prefill_flops: float
  decode_flops: tuple[float, ...]
  decode_bytes: tuple[float, ...]
  training_flops: float
  optimizer_bytes: float

  @property
  def flops(self) -> float:
    """All FLOPs of the step."""
    return self.prefill_flops + sum(self.decode_flops) + self.training_flops


def layer_weights(config: DecoderConfig) -> int:
  """Entries of the layers' matrices."""
  return config.num_layers * layer_count(config, matrices_only=True)


def step_work(
  config: DecoderConfig, load: Workload, *, shared: bool, lora: LoraConfig | None = None
) -> StepWork:
  """Counts one step: sampling, one forward and backward pass, one AdamW update, no KL term.

  Args:
    config: the decoder.
    load: the batch.
    shared: each prompt is encoded once for its whole group; otherwise once for each candidate.
    lora: adapters on a frozen model. Products with its weights count twice instead of three times
      in training, for they have no gradient, and AdamW sees the adapters alone.
  """
  layers, head = layer_weights(config), config.vocab_size * config.hidden_size
  trained = layers + head * (1 if config.tie_embeddings else 2)
  adapters = 0
  if lora is not None:
    pairs = adapter_parameters(config, lora.rank, lora.targets)
    adapters = trained = sum(half.size for pair in pairs for half in pair)
  rows, length, new = load.rows, load.prompt_tokens, load.completion_tokens
  encoded = load.prompts if shared else rows
  itemsize = 4 if config.dtype == "float32" else 2
  kept = 2 * config.num_layers * config.num_kv_heads * config.head_dim  # entries a cached token
  pair = 4 * config.num_layers * config.num_heads * config.head_dim  # FLOPs of (query, key)
  triangle = lambda n: n * (n + 1) // 2
  depth = config.num_layers

  def products(fed: int, predicted: int) -> tuple[float, float]:
    """Forward FLOPs of the prompts, so many tokens of each candidate and predictions in all: those
    with weights, and those of attention."""
    pairs = encoded * triangle(length) + rows * (triangle(length + fed) - triangle(length))
    weights = 2.0 * layers * (encoded * length + rows * fed) + 2.0 * head * predicted
    # The last layer of what predicts nothing is spared.
    weights -= encoded * 2.0 * (layers - config.hidden_size * kept) * (length - 1) / depth
    return weights, pair * (pairs - encoded * triangle(length - 1) / depth)

  through_adapters = 2.0 * adapters * (encoded * length + rows * (new - 1))
  with_weights, attention = products(new - 1, rows * new)
  decoded = range(1, new)  # the first token comes from the prompt's encoding
  return StepWork(
    prefill_flops=sum(products(0, encoded)),
    decode_flops=tuple(rows * (2.0 * (layers + head) + pair * (length + t)) for t in decoded),
    decode_bytes=tuple(
      float(itemsize * (layers + head + kept * (encoded * length + rows * t))) for t in decoded
    ),
    training_flops=(2 if lora else 3) * with_weights + 3 * (attention + through_adapters),
    optimizer_bytes=float(OPTIMIZER_BYTES * trained),
  )
