"""Methods from outside: files that a user names, and installed packages.

A file is loaded as a module of this folder, so that one written for it, with its relative imports, runs from anywhere;
``from fastmerge.methods import Method, method`` works as well.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

from ..errors import FastmergeError
from ..steps.method import METHODS

# Packages register methods by importing a module: [project.entry-points."fastmerge.methods"] name = "package.module"
ENTRY_POINTS = "fastmerge.methods"

_LOADED: dict[Path, tuple[str, ...]] = {}


def load_plugin(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Run a Python file and return the names of the methods that it registered; once per file.

    Raises:
        FastmergeError: there is no such file, it fails, or it registers no method.
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
    before = set(METHODS)
    try:
        spec.loader.exec_module(module)
        found = tuple(sorted(set(METHODS) - before))
        if not found:
            raise ValueError("it registers no method; decorate a class with fastmerge.methods.method")
    except BaseException as error:
        del sys.modules[name]
        for method in set(METHODS) - before:
            del METHODS[method]
        if not isinstance(error, Exception):
            raise
        raise FastmergeError(f"{path}: cannot be used as a plugin: {type(error).__name__}: {error}") from error
    _LOADED[file] = found
    return found


def load_installed() -> None:
    """Import what installed packages declare as methods; FastmergeError names the package of one that fails."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else "an installed package"
            what = f"{package}: its merge method {entry.name} ({entry.value}) cannot be loaded"
            raise FastmergeError(f"{what}: {type(error).__name__}: {error}; repair or uninstall it") from error
