"""``fastmerge inspect``."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import click

from ..sizes import show_size
from ._errors import Command
from ._options import JSON
from ._output import print_facts, print_json, print_table

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint


@click.command(cls=Command)
@click.argument("model")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@JSON
def inspect(model: str, tensors: bool, as_json: bool) -> None:
    """Show what MODEL (a folder or hub id) holds, and how it was merged if fastmerge did it."""
    from ..checkpoint import locate, open_checkpoint

    checkpoint = open_checkpoint(locate(model))
    manifest = _manifest(checkpoint.folder)
    if as_json:
        print_json(_values(checkpoint, manifest))
        return
    config = checkpoint.config or {}
    by_dtype = Counter[str]()
    for entry in checkpoint.tensors.values():
        by_dtype[_dtype(entry.dtype)] += entry.nbytes
    facts = [
        ("folder", checkpoint.folder),
        ("type", str(config.get("model_type", "no config.json"))),
        ("files", f"{len(checkpoint.files)}, {show_size(sum(file.nbytes for file in checkpoint.files))}"),
        ("tensors", str(len(checkpoint.tensors))),
        ("dtypes", ", ".join(f"{dtype} {show_size(nbytes)}" for dtype, nbytes in by_dtype.most_common())),
    ]
    if manifest is not None:
        facts += [
            ("merged by", f"{manifest['method']} (semantics: {manifest['semantics']}, seed: {manifest['seed']})"),
            ("inputs", ", ".join(item["reference"] for item in manifest["inputs"])),
        ]
    print_facts(facts)
    if manifest is not None:
        click.echo("recipe")
        click.echo("".join(f"  {line}\n" for line in manifest["recipe"].splitlines()), nl=False)
    if tensors:
        rows = [
            (name, _dtype(entry.dtype), str(list(entry.shape)), os.path.basename(entry.path))
            for name, entry in checkpoint.tensors.items()
        ]
        print_table(("tensor", "dtype", "shape", "file"), rows)


def _values(checkpoint: Checkpoint, manifest: dict | None) -> dict:
    return {
        "folder": checkpoint.folder,
        "files": {file.path: file.nbytes for file in checkpoint.files},
        "config": checkpoint.config,
        "tensors": {
            name: {"dtype": _dtype(entry.dtype), "shape": entry.shape, "bytes": entry.nbytes, "file": entry.path}
            for name, entry in checkpoint.tensors.items()
        },
        "manifest": manifest,
    }


def _manifest(folder: str) -> dict | None:
    from pathlib import Path

    from ..engine.manifest import FILENAME, read_manifest

    return read_manifest(Path(folder)) if os.path.exists(os.path.join(folder, FILENAME)) else None


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
