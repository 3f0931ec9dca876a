"""A LoRA adapter out of two models: the best low-rank approximation of every matrix by which they differ."""

from .report import Extracted, ExtractionReport
from .run import extract
from .selection import Other

__all__ = ["Extracted", "ExtractionReport", "Other", "extract"]
