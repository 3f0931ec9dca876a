"""Checkpoints in other formats: GGUF, as llama.cpp and its relatives load it."""

from .run import ConversionReport, convert

__all__ = ["ConversionReport", "convert"]
