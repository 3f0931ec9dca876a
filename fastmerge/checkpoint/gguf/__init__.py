"""GGUF files as checkpoints: names and layouts as in transformers, values as the ``gguf`` package decodes them."""

from .reading import open_gguf

__all__ = ["open_gguf"]
