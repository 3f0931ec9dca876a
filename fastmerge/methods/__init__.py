"""Merge methods, one per file: every module of this folder that does not start with ``_`` is the method of its name.

A file is loaded when its method is asked for. Other methods come from plugins (``load_plugin``) and from installed
packages with entry points in ``fastmerge.methods``; those are loaded for a name that is not known without them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from ..errors import InvalidInput, Problem, nearest
from ..steps.method import HOMES, METHODS, REQUIRED, Group, Layout, Method, Parameter, Solve, method
from . import _plugins
from ._blocks import BLOCKS, Block, why_not, with_blocks
from ._configure import Configured, configure
from ._plugins import load_plugin
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
    "method_called",
    "method_names",
    "why_not",
    "with_blocks",
]


HOMES.update(
    {module.name: f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"}
)


def method_called(name: str) -> Method | None:
    """Return the merge method that recipes call ``name``, or None."""
    if name not in METHODS:
        if name in HOMES:
            importlib.import_module(HOMES[name])
        else:
            _load_installed()
    return METHODS.get(name)


def method_names() -> list[str]:
    """Return the names of all merge methods, in alphabetical order."""
    _load_installed()
    return sorted(METHODS.keys() | HOMES)


def all_methods() -> dict[str, Method]:
    """Return every merge method by name, in alphabetical order; loads all of them."""
    return {name: get_method(name) for name in method_names()}


def find_method(name: str) -> Method:
    """Return the merge method that recipes call ``name``; InvalidInput suggests one where there is none."""
    found = method_called(name)
    if found is None:
        names = method_names()
        close = nearest(name, names)
        remedy = f"did you mean {close}?" if close else f"available: {', '.join(names)}"
        raise InvalidInput([Problem("method", f"{name!r} is unknown", remedy)])
    return found


def get_method(name: str) -> Method:
    """Return a method, ``name`` as in recipes or with blocks (``ties+boost``); KeyError names the ones that exist."""
    plain, *blocks = name.split("+")
    found = method_called(plain)
    if found is None:
        raise KeyError(f"unknown merge method {plain!r}; available: {', '.join(method_names())}")
    return with_blocks(found, frozenset(blocks)) if blocks else found


@functools.cache
def _load_installed() -> None:
    _plugins.load_installed()
