"""``fastmerge inspect``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ._errors import Command
from ._options import CONFIG_SOURCE, JSON, NAMES, together
from ._output import note, print_facts, print_json, print_table

if TYPE_CHECKING:
    from ..reports.inspecting import Inspection


@click.command(cls=Command)
@click.argument("model")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@together(NAMES, CONFIG_SOURCE, JSON)
def inspect(model: str, tensors: bool, names: str | None, config_source: str | None, as_json: bool) -> None:
    """Show what MODEL (a folder, a file or a hub id) holds, and how it was merged if fastmerge did it.

    Of model+adapter it shows what a merge of that one model writes; the weights of neither are read.
    """
    from ..reports.inspecting import inspect as look_into
    from ..reports.inspecting import stored_dtype

    found = look_into(model, names=names, config_source=config_source)
    for text in found.notes:
        note(text, as_json)
    if as_json:
        print_json(_values(found))
        return
    print_facts(found.facts())
    if found.manifest is not None:
        click.echo("recipe")
        click.echo("".join(f"  {line}\n" for line in found.manifest["recipe"].splitlines()), nl=False)
    if tensors:
        rows = [
            (name, stored_dtype(entry), str(list(entry.shape)), os.path.basename(entry.path))
            for name, entry in found.tensors.items()
        ]
        print_table(("tensor", "dtype", "shape", "file"), rows)


def _values(found: Inspection) -> dict:
    from ..reports.inspecting import stored_bytes

    return {
        "folder": found.folder,
        "parameters": found.parameters,
        "vocabulary": found.vocabulary,
        "bytes": found.stored,
        "dtypes": found.dtypes,
        "files": found.files,
        "notes": found.notes,
        **({"adapter": found.adapter} if found.adapter else {}),
        "layers": found.layers,
        "config": found.config,
        "tensors": {
            name: {
                "dtype": str(entry.dtype),
                "shape": entry.shape,
                "bytes": stored_bytes(entry),
                "file": entry.path,
                **({"format": entry.coded.format} if entry.coded else {}),
            }
            for name, entry in found.tensors.items()
        },
        "manifest": found.manifest,
    }
