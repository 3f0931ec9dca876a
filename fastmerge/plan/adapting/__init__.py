"""Attaches an adapter to the tensors of its base."""

from .attaching import attach

__all__ = ["attach"]
