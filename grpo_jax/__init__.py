"""GRPO with verifiable rewards for tool-calling language models, in JAX."""

__version__ = "0.1.0"
