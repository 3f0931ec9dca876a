"""Merge methods, one per file, found by themselves: every module of this folder that does not start with ``_``."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from ._base import METHODS, REQUIRED, Group, Method, Parameter, Solve, method

__all__ = ["REQUIRED", "Group", "Method", "Parameter", "Solve", "all_methods", "get_method", "method"]


@functools.cache
def all_methods() -> dict[str, Method]:
    """Return every merge method by name, in alphabetical order."""
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(METHODS.items()))


def get_method(name: str) -> Method:
    """Return the method that recipes call ``name``; KeyError names the ones that exist."""
    methods = all_methods()
    if name not in methods:
        raise KeyError(f"unknown merge method {name!r}; available: {', '.join(methods)}")
    return methods[name]
