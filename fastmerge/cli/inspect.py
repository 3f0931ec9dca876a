"""``fastmerge inspect``."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import click

from ..sizes import show_size
from ._errors import Command
from ._options import JSON
from ._output import note, print_facts, print_json, print_table

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint, TensorEntry


@click.command(cls=Command)
@click.argument("model")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@JSON
def inspect(model: str, tensors: bool, as_json: bool) -> None:
    """Show what MODEL (a folder or hub id) holds, and how it was merged if fastmerge did it."""
    from ..checkpoint import locate, open_checkpoint

    checkpoint, unread = _decoded(open_checkpoint(locate(model)))
    manifest = _manifest(checkpoint.folder)
    for text in checkpoint.notes:
        note(text, as_json)
    if as_json:
        print_json(_values(checkpoint, manifest))
        return
    config = checkpoint.config or {}
    by_dtype = Counter[str]()
    for entry in checkpoint.tensors.values():
        by_dtype[_dtype(entry)] += _nbytes(entry)
    facts = [
        ("folder", checkpoint.folder),
        ("type", str(config.get("model_type", "no config.json"))),
        ("files", f"{len(checkpoint.files)}, {show_size(sum(file.nbytes for file in checkpoint.files))}"),
        ("tensors", str(len(checkpoint.tensors))),
        ("dtypes", ", ".join(f"{dtype} {show_size(nbytes)}" for dtype, nbytes in by_dtype.most_common())),
        ("layers", ", ".join(f"{count} {stack or 'at the top'}" for stack, count in _layers(checkpoint).items())),
    ]
    if manifest is not None:
        facts += [
            ("merged by", f"{manifest['method']} (semantics: {manifest['semantics']}, seed: {manifest['seed']})"),
            ("inputs", ", ".join(item["reference"] for item in manifest["inputs"])),
        ]
    if unread:
        facts.append(("not merged", unread))
    print_facts(facts)
    if manifest is not None:
        click.echo("recipe")
        click.echo("".join(f"  {line}\n" for line in manifest["recipe"].splitlines()), nl=False)
    if tensors:
        rows = [
            (name, _dtype(entry), str(list(entry.shape)), os.path.basename(entry.path))
            for name, entry in checkpoint.tensors.items()
        ]
        print_table(("tensor", "dtype", "shape", "file"), rows)


def _layers(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the number of layers by stack, those that slices cut first."""
    from ..checkpoint.layers import find_stacks, split_layer

    stacks = find_stacks([parts for name in checkpoint.tensors if (parts := split_layer(name))], checkpoint.config)
    return dict(sorted(stacks.counts.items(), key=lambda item: item[0] != stacks.main))


def _values(checkpoint: Checkpoint, manifest: dict | None) -> dict:
    return {
        "folder": checkpoint.folder,
        "files": {file.path: file.nbytes for file in checkpoint.files},
        "notes": checkpoint.notes,
        "layers": _layers(checkpoint),
        "config": checkpoint.config,
        "tensors": {
            name: {
                "dtype": str(entry.dtype),
                "shape": entry.shape,
                "bytes": _nbytes(entry),
                "file": entry.path,
                **({"format": entry.coded.format} if entry.coded else {}),
            }
            for name, entry in checkpoint.tensors.items()
        },
        "manifest": manifest,
    }


def _manifest(folder: str) -> dict | None:
    if not os.path.exists(os.path.join(folder, "fastmerge.json")):
        return None
    from pathlib import Path

    from ..engine.manifest import read_manifest

    return read_manifest(Path(folder))


def _dtype(entry: TensorEntry) -> str:
    """Return the dtype as it is stored: of a quantized tensor the name of its format."""
    return entry.coded.format if entry.coded else str(entry.dtype)


def _decoded(checkpoint: Checkpoint) -> tuple[Checkpoint, str]:
    """Return the checkpoint with its weights as they are merged; where they cannot be read, as stored, and why."""
    from ..checkpoint.quantized import decoded
    from ..errors import CheckpointError

    try:
        return decoded(checkpoint), ""
    except CheckpointError as error:
        return checkpoint, str(error)


def _nbytes(entry: TensorEntry) -> int:
    """Return the bytes of all that a tensor is stored as."""
    return sum(part.nbytes for part, _ in entry.coded.parts) if entry.coded else entry.nbytes
