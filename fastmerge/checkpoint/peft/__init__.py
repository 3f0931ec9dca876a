"""PEFT adapters of every kind that can be folded: which tensors they change, and how."""

from .reading import read_adapter
from .types import Change, PeftAdapter

__all__ = ["Change", "PeftAdapter", "read_adapter"]
