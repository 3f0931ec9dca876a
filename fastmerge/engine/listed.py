"""Whether a file is still as the manifest of an output lists it: small files by bytes, weights by their header."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import xxhash

from ..checkpoint import read_header
from ..checkpoint.file_names import INDEX
from ..errors import CheckpointError, Problem

CARD = "README.md"
"""The model card, which its author goes on writing."""

Check: TypeAlias = Callable[[Path], bool]
"""Tells whether a file is still as fastmerge wrote it."""


def as_listed(item: Mapping[str, Any]) -> Check:
    """Return the check of a file: ``item`` is what the manifest lists of it."""

    def check(path: Path) -> bool:
        try:
            if path.stat().st_size != item["bytes"]:
                return False
            if "header" in item:
                return _digest(path) == item["header"]
            digest = xxhash.xxh3_64()
            with open(path, "rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            return digest.hexdigest() == item["xxh3"]
        except (OSError, CheckpointError, KeyError):
            return False

    return check


def _digest(path: Path) -> str | None:
    """Return the digest of what a file of weights says of its tensors."""
    if path.suffix != ".distcp":
        return read_header(str(path))[0].header_digest
    from ..checkpoint.distributed.reading import digest_of

    return digest_of(str(path))


def changed_files(out: Path, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the files of an output that are not as its manifest lists them; none where it lists none.

    The tensors of weights that lie in other files now are looked up by name; the index is another one then.
    """
    items = manifest.get("files", ())
    moved = any("header" in item and not (out / item["name"]).is_file() for item in items)
    for item in items:
        path = out / item["name"]
        if moved and item["name"] in INDEX:
            continue
        if {"/", ".."} & {*PurePath(item["name"]).parts}:
            yield Problem(str(path), "lies outside the output", "merge again")
        elif not path.is_file():
            if "header" not in item:
                yield Problem(str(path), "is missing", "restore it, or merge again")
        elif not as_listed(item)(path):
            what = "its header is" if "header" in item else "is"
            yield Problem(str(path), f"{what} not what the merge wrote", "restore it, or merge again")
