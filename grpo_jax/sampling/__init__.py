"""Sampling of groups: each prompt is encoded once, then G candidates are decoded against it.

`drawing` draws one token of each candidate, `decoding` all tokens of a batch as pure functions,
`program` compiles these and leaves out what has ended, `generation` completes any prompts, and
`dynamic` replaces groups that teach nothing.
"""

from grpo_jax.config import SamplingConfig
from grpo_jax.sampling.decoding import sample_groups
from grpo_jax.sampling.drawing import draw, filtered_logits, invert_cdf
from grpo_jax.sampling.dynamic import replace_idle
from grpo_jax.sampling.generation import LENGTH_BUCKETS, cut_to_bucket, generate, pad_to_bucket
from grpo_jax.sampling.program import SampleProgram, sample_program

__all__ = [
  "LENGTH_BUCKETS",
  "SampleProgram",
  "SamplingConfig",
  "cut_to_bucket",
  "draw",
  "filtered_logits",
  "generate",
  "invert_cdf",
  "pad_to_bucket",
  "replace_idle",
  "sample_groups",
  "sample_program",
]
