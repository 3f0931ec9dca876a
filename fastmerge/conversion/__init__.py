"""Checkpoints in other formats: GGUF, as llama.cpp and its relatives load it; DCP, as training does; the hub's.

The names below are imported on first use: a conversion into the hub's layout does not need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dcp import DcpReport, to_dcp
    from .hub import to_hub
    from .run import ConversionReport, convert

__all__ = ["ConversionReport", "DcpReport", "convert", "to_dcp", "to_hub"]

_HOMES = {"ConversionReport": "run", "DcpReport": "dcp", "convert": "run", "to_dcp": "dcp", "to_hub": "hub"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
