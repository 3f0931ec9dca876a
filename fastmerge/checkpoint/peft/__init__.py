"""PEFT adapters of every kind that can be folded: which tensors they change, and how."""

from .reading import is_adapter, read_adapter
from .types import Change, PeftAdapter

__all__ = ["Change", "PeftAdapter", "is_adapter", "read_adapter"]
