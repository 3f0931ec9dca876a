"""Merging state dicts in memory, where their tensors lie."""

from __future__ import annotations

from .merging import merge_, merge_state_dicts

__all__ = ["merge_", "merge_state_dicts"]
