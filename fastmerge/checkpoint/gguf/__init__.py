"""GGUF files as checkpoints: names and layouts as in transformers, values as the ``gguf`` package decodes them."""

from __future__ import annotations

from typing import Any

from ..types import Checkpoint
from .naming import models_in

__all__ = ["models_in", "open_gguf"]


def open_gguf(path: str, config: dict[str, Any] | None = None) -> Checkpoint:
    """See ``reading.open_gguf``, which is loaded for it."""
    from . import reading

    return reading.open_gguf(path, config)
