"""Whether an existing folder may be replaced: where fastmerge wrote everything in it, and nothing of it is needed.

The manifest of an output lists its files, small ones with the checksum of their bytes, weights with that of their
header. What is not listed, or was changed, is not fastmerge's.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from ..checkpoint import read_header
from ..errors import CheckpointError
from ..plan.copies import MODEL_FILES, TOKENIZER_FILES
from .folders import place_below
from .listed import Check, as_listed
from .manifest import FILENAME, read_manifest

# What outputs without a list of files may hold beside weights. A "*.py" of theirs may as well be the user's.
_KNOWN = ("README.md", "config.json", "model.safetensors.index.json", *MODEL_FILES, *TOKENIZER_FILES)
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")

_MOST_LISTED = 10

# What a report of the merge adds later: it lists the other files, with the checksums of their bytes.
REPORT = "report.json"
REPORTED = ("report.html", "report.csv")


class OwnFiles:
    """What fastmerge wrote of ``folder``, as the manifest in it says: nothing where there is none."""

    def __init__(self, folder: Path):
        self._folder = folder
        listed = _listed_files(folder)
        # A manifest that came with the folder may name anything.
        self._checks = {name: check for name, check in listed.items() if not {"/", ".."} & {*PurePath(name).parts}}
        self._folders = {str(parent) for name in self._checks for parent in PurePath(name).parents if parent.parts}

    def in_the_way(self, needed: Mapping[str, str]) -> list[str]:
        """Return what forbids to remove the folder, one phrase each.

        Args:
            needed: paths that must survive, and what each of them is.
        """
        found = {place: what for path, what in needed.items() if (place := self._place(path)) is not None}
        for entry, why in self._walk():
            name = self._name(entry)
            if why and not any(place == name or place.startswith(f"{name}/") for place in found):
                found[f"{name}/" if entry.is_dir(follow_symlinks=False) else name] = why
        phrases = [f"{os.fsencode(name).decode(errors='replace')} ({what})" for name, what in found.items()]
        if len(phrases) > _MOST_LISTED:
            phrases[_MOST_LISTED:] = [f"{len(phrases) - _MOST_LISTED} more"]
        return phrases

    def remove(self) -> bool:
        """Remove what fastmerge wrote, and the folder where nothing else is in it. True when it is gone."""
        own = [entry for entry, why in self._walk() if not why]
        # The manifest last, since it says what is ours; then the folders, inner ones first.
        for entry in sorted(own, key=lambda entry: self._name(entry) == FILENAME):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry)
        inner = [Path(entry.path) for entry in reversed(own) if entry.is_dir(follow_symlinks=False)]
        for path in [*inner, self._folder]:
            if not os.listdir(path):
                os.rmdir(path)
        return not self._folder.exists()

    def _name(self, entry: os.DirEntry[str]) -> str:
        return os.path.relpath(entry.path, self._folder)

    def _place(self, path: str) -> str | None:
        """Return where in the folder a path lies, also when it leads there by another name of an inner folder."""
        for inner in ("", *self._folders):
            place = place_below(self._folder / inner, path)
            if place is not None:
                return os.path.normpath(os.path.join(inner, place))
        return None

    def _walk(self, inner: str = "") -> Iterator[tuple[os.DirEntry[str], str]]:
        """Yield entries, outer ones first, each with the reason why it is not ours, or "". Stops at foreign folders."""
        for entry in sorted(os.scandir(self._folder / inner), key=lambda entry: entry.name):
            name = self._name(entry)
            if entry.is_dir(follow_symlinks=False):
                own = name in self._folders
                yield entry, "" if own else "not written by fastmerge"
                if own:
                    yield from self._walk(name)
            elif name not in self._checks or entry.is_symlink():
                yield entry, "not written by fastmerge"
            else:
                yield entry, "" if self._checks[name](Path(entry.path)) else "changed since fastmerge wrote it"


def _listed_files(folder: Path) -> dict[str, Check]:
    if (folder / FILENAME).is_symlink():
        return {}
    try:
        manifest = read_manifest(folder)
        own: dict[str, Check] = {FILENAME: os.path.isfile}
        if "files" in manifest:
            own |= {item["name"]: as_listed(dict(item)) for item in manifest["files"]}
            return own | _reported(folder, manifest)
        tensors = set(manifest["tensors"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return {}
    for name in os.listdir(folder):
        if _WEIGHTS.fullmatch(name):
            own[name] = _holds_only(tensors)
        elif any(fnmatch.fnmatchcase(name, pattern) for pattern in _KNOWN) and not name.endswith(".py"):
            own[name] = os.path.isfile
    return own


def _reported(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Check]:
    """Return the files of a report on this very merge."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        if report["plan"] != manifest["plan"]:
            return {}
        listed = {item["name"]: as_listed(dict(item)) for item in report["files"] if item["name"] in REPORTED}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {REPORT: os.path.isfile, **listed}


def _holds_only(tensors: set[str]) -> Check:
    def check(path: Path) -> bool:
        try:
            return read_header(str(path))[1].keys() <= tensors
        except CheckpointError:
            return False

    return check
