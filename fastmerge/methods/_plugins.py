"""Methods from outside: files that a user names, and installed packages.

A file is loaded as a module of this folder, so that one written for it, with its relative imports, runs from anywhere;
``from fastmerge.methods import Method, method`` works as well.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

from ..errors import FastmergeError
from ..steps.method import HOMES, METHODS

# Packages register methods by importing a module: [project.entry-points."fastmerge.methods"] name = "package.module"
ENTRY_POINTS = "fastmerge.methods"

_LOADED: dict[Path, tuple[str, ...]] = {}


def load_plugin(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Run a Python file that registers merge methods; they are then like the others.

    The file may lie anywhere, and is written as those of this folder are. Loading it again does nothing.

    Returns:
        The names of its methods.
    Raises:
        FastmergeError: there is no such file, it fails, registers no method, or one whose name is taken.
    """
    file = Path(path).resolve()
    if file in _LOADED:
        return _LOADED[file]
    if not file.is_file():
        raise FastmergeError(f"{path}: is no file; expected a Python file that registers a merge method")
    name = f"{__package__}._plugin_{len(_LOADED)}_{file.stem}"
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, str(file)))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    before = _others()
    try:
        spec.loader.exec_module(module)
        found = tuple(sorted(_others() - before))
        if not found:
            raise ValueError("it registers no method; decorate a class with fastmerge.methods.method")
    except BaseException as error:
        del sys.modules[name]
        for method in _others() - before:
            del METHODS[method]
        if not isinstance(error, Exception):
            raise
        raise FastmergeError(f"{path}: cannot be used as a plugin: {type(error).__name__}: {error}") from error
    _LOADED[file] = found
    return found


def _others() -> set[str]:
    """Return the names of the methods that are loaded and have no file in this folder, which a plugin may use."""
    return METHODS.keys() - HOMES


def load_installed() -> None:
    """Import what installed packages declare as methods; FastmergeError names the package of one that fails."""
    import importlib.metadata  # slow, and of no use to methods of this folder

    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else "an installed package"
            what = f"{package}: its merge method {entry.name} ({entry.value}) cannot be loaded"
            raise FastmergeError(f"{what}: {type(error).__name__}: {error}; repair or uninstall it") from error
