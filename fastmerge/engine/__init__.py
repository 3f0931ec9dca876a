"""The streaming engine: carries out a plan within a memory budget, resumably, and verifies the result.

The names below are imported on first use: a command that needs one part does not load all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .against import RecipeReport, verify_recipe
    from .report import Report, Stage
    from .running import RunOptions, run
    from .verifying import VerifyReport, verify

__all__ = [
    "RecipeReport",
    "Report",
    "RunOptions",
    "Stage",
    "VerifyReport",
    "run",
    "verify",
    "verify_recipe",
]

_HOMES = {
    "RecipeReport": "against",
    "Report": "report",
    "RunOptions": "running",
    "Stage": "report",
    "VerifyReport": "verifying",
    "run": "running",
    "verify": "verifying",
    "verify_recipe": "against",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
