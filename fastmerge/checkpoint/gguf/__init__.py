"""GGUF files as checkpoints: names and layouts as in transformers, values as the ``gguf`` package decodes them."""

from .naming import models_in
from .reading import open_gguf

__all__ = ["models_in", "open_gguf"]
