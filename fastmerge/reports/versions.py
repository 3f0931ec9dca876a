"""Versions of the packages that fastmerge uses, without loading them."""

from __future__ import annotations

import importlib.metadata

REQUIRED = ("torch", "numpy", "safetensors", "pydantic", "PyYAML", "click", "rich", "jinja2", "xxhash")


def version_of(distribution: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
