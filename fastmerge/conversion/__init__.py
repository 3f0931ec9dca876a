"""Models in other formats: GGUF, as llama.cpp and its relatives load it; DCP, as training does; the hub's.

The names below are imported on first use: ``convert`` needs torch, and the others often do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .passing import to_dcp, to_hub
    from .run import ConversionReport, convert

__all__ = ["ConversionReport", "convert", "to_dcp", "to_hub"]

_HOMES = {"ConversionReport": "run", "convert": "run", "to_dcp": "passing", "to_hub": "passing"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
