"""The arithmetic of adapters (``terms``), and the memory that it takes."""

from .memory import made_shapes, working_bytes

__all__ = ["made_shapes", "working_bytes"]
