"""Recipes that commands make, as text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import yaml

from ..checkpoint.distributed.tables import NameTable, read_table, table_of
from ..errors import InvalidInput, Problem

__all__ = ["Table", "of_training", "read_names", "write_recipe"]

Table = str | os.PathLike[str] | Mapping[str, str | None]
"""A table of names: a file of YAML or JSON, or what it holds."""


def read_names(names: Table | None) -> NameTable | None:
    """Return a table of names, or None where none is given; CheckpointError or InvalidInput where it is wrong."""
    if names is None:
        return None
    if isinstance(names, str | os.PathLike):
        return read_table(names)
    try:
        return table_of(names)
    except ValueError as error:
        raise InvalidInput([Problem("names", str(error))]) from None


def of_training(names: Table | None, config_source: str | None) -> dict[str, Any]:
    """Return the keys of a recipe that are of checkpoints of training, with what a file of names holds.

    Raises:
        CheckpointError: the file is no table.
        InvalidInput:    the mapping is none, or ``config_source`` is no folder.
    """
    keys: dict[str, Any] = {}
    if (table := read_names(names)) is not None:
        keys["names"] = table.text
    if config_source is not None:
        folder = os.path.abspath(os.path.expanduser(config_source))
        if not os.path.isdir(folder):
            raise InvalidInput([Problem(config_source, "is no folder", "name the one that holds config.json")])
        keys["config_source"] = folder
    return keys


def write_recipe(recipe: Mapping[str, Any]) -> str:
    """Return the text of a recipe. YAML writes numbers so that reading gives the same ones."""
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
