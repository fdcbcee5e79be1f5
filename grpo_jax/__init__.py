"""GRPO with verifiable rewards for tool-calling language models, in JAX."""

from grpo_jax import _moved

__version__ = "0.2.0"

_moved.install()
