"""Merge methods, one per file, found by themselves: every module of this folder that does not start with ``_``."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from ..steps.method import METHODS, REQUIRED, Group, Layout, Method, Parameter, Solve, method
from ._blocks import BLOCKS, why_not, with_blocks

__all__ = [
    "BLOCKS",
    "REQUIRED",
    "Group",
    "Layout",
    "Method",
    "Parameter",
    "Solve",
    "all_methods",
    "get_method",
    "method",
    "why_not",
    "with_blocks",
]


@functools.cache
def all_methods() -> dict[str, Method]:
    """Return every merge method by name, in alphabetical order."""
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(METHODS.items()))


def get_method(name: str) -> Method:
    """Return a method, ``name`` as in recipes or with blocks (``ties+boost``); KeyError names the ones that exist."""
    methods = all_methods()
    plain, *blocks = name.split("+")
    if plain not in methods:
        raise KeyError(f"unknown merge method {plain!r}; available: {', '.join(methods)}")
    return with_blocks(methods[plain], frozenset(blocks)) if blocks else methods[plain]
