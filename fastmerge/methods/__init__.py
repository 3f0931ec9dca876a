"""Merge methods, one per file, found by themselves: every module of this folder that does not start with ``_``.

Others come from plugins (``load_plugin``) and from installed packages with entry points in ``fastmerge.methods``.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil

from ..errors import InvalidInput, Problem, nearest
from ..steps.method import METHODS, REQUIRED, Group, Layout, Method, Parameter, Solve, method
from . import _plugins
from ._blocks import BLOCKS, Block, why_not, with_blocks
from ._configure import Configured, configure
from ._spectral import PROJECTIONS

__all__ = [
    "BLOCKS",
    "PROJECTIONS",
    "REQUIRED",
    "Block",
    "Configured",
    "Group",
    "Layout",
    "Method",
    "Parameter",
    "Solve",
    "all_methods",
    "configure",
    "find_method",
    "get_method",
    "load_plugin",
    "method",
    "why_not",
    "with_blocks",
]


@functools.cache
def _load_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}")
    _plugins.load_installed()


def all_methods() -> dict[str, Method]:
    """Return every merge method by name, in alphabetical order."""
    _load_all()
    return dict(sorted(METHODS.items()))


def find_method(name: str) -> Method:
    """Return the merge method that recipes call ``name``; InvalidInput suggests one where there is none."""
    methods = all_methods()
    if name not in methods:
        close = nearest(name, methods)
        remedy = f"did you mean {close}?" if close else f"available: {', '.join(methods)}"
        raise InvalidInput([Problem("method", f"{name!r} is unknown", remedy)])
    return methods[name]


def load_plugin(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Run a Python file that registers merge methods; they are then like the others.

    The file may lie anywhere, and is written as those of this folder are. Loading it again does nothing.

    Returns:
        The names of its methods.
    Raises:
        FastmergeError: there is no such file, it fails, registers no method, or one whose name is taken.
    """
    _load_all()
    return _plugins.load_plugin(path)


def get_method(name: str) -> Method:
    """Return a method, ``name`` as in recipes or with blocks (``ties+boost``); KeyError names the ones that exist."""
    _load_all()
    plain, *blocks = name.split("+")
    if plain not in METHODS:
        raise KeyError(f"unknown merge method {plain!r}; available: {', '.join(all_methods())}")
    return with_blocks(METHODS[plain], frozenset(blocks)) if blocks else METHODS[plain]
