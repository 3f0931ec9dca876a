"""What runs that were stopped or killed left beside their targets: found, told, and removed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError, explained
from .folders import lock_folder
from .journal import is_written
from .publish import LOCKED, RANKS, hold, is_held, plan_of, settle
from .replacing import OwnFiles
from .workplace import SCORES, place_in_memory

__all__ = ["ANALYSIS", "Leftover", "leftovers_in", "leftovers_of", "remove"]

_PARTIAL = re.compile(r"\.(.+)\.partial-[0-9a-z_]{8}")
_LOCK = re.compile(r"\.(.+)\.lock")
_STEPS = re.compile(r"\.(.+)\.steps")
_ANALYSIS = re.compile(r"\.(.+)\.analysis(\.new)?")
ANALYSIS = {"analysis": 1}
"""How the first line of an analysis' journal begins."""
_CONTENTS = re.compile(rf"out|swap|aside|{RANKS}|journal(-\d+)?\.jsonl(\.new)?")


@dataclass(frozen=True)
class Leftover:
    """A partial folder, intermediate results of a recipe of several documents, the journal of an analysis, or a lock.

    Attributes:
        path:     of it.
        target:   where the output would have appeared.
        nbytes:   that it takes on the disk.
        finished: tensors that the same command would take over, and parts of tensors.
        in_use:   True while a process works there.
    """

    path: Path
    target: Path
    nbytes: int = 0
    finished: int = 0
    in_use: bool = False


def leftovers_in(folder: Path) -> list[Leftover]:
    """Return what runs left in ``folder`` itself, by name."""
    return [leftover for path in sorted(folder.iterdir()) if (leftover := _examine(path)) is not None]


def leftovers_of(target: Path) -> list[Leftover]:
    """Return what runs left beside ``target`` that should have become it, and in memory."""
    beside = [leftover for leftover in leftovers_in(target.parent) if leftover.target == target]
    memory = place_in_memory(target)
    return beside if memory.is_symlink() or not memory.is_dir() else [*beside, _folder(memory, target)]


def remove(leftover: Leftover) -> None:
    """Remove a leftover; an output that was being replaced is brought back.

    Raises:
        OutputError: a process works there, or the disk refuses.
    """
    with hold(leftover.target), explained(str(leftover.path), "removing"):
        if not leftover.path.is_dir():
            if not _LOCK.fullmatch(leftover.path.name):  # to hold a lock, and to let it go, is all
                leftover.path.unlink()
            return
        lock = lock_folder(leftover.path)
        if lock is None:
            raise OutputError(f"{leftover.path}: a process works there")
        try:
            settle(leftover.path, leftover.target, digest=None)
            shutil.rmtree(leftover.path)
        finally:
            os.close(lock)


def _examine(path: Path) -> Leftover | None:
    """Return the leftover at ``path``; None for what fastmerge did not make, or nobody can read."""
    try:
        return _made_by_a_merge(path)
    except OSError:
        return None


def _made_by_a_merge(path: Path) -> Leftover | None:
    if path.is_symlink():
        return None
    if (match := _LOCK.fullmatch(path.name)) and path.is_file() and path.stat().st_size == len(LOCKED):
        held = is_held(path)
        return Leftover(path, path.with_name(match[1]), in_use=held) if path.read_bytes() == LOCKED else None
    if (match := _ANALYSIS.fullmatch(path.name)) and path.is_file():
        return _analysis(path, path.with_name(match[1]))
    if not path.is_dir():
        return None
    if (match := _PARTIAL.fullmatch(path.name)) and all(map(_CONTENTS.fullmatch, os.listdir(path))):
        return _folder(path, path.with_name(match[1]))
    if (match := _STEPS.fullmatch(path.name)) and all(_is_of_a_step(inner) for inner in path.iterdir()):
        return _folder(path, path.with_name(match[1]))
    return None


def _analysis(path: Path, target: Path) -> Leftover | None:
    if not path.read_bytes().startswith(json.dumps(ANALYSIS)[:-1].encode() + b","):
        return None
    lock = target.with_name(f".{target.name}.lock")
    held = lock.exists() and is_held(lock)
    return Leftover(path, target, path.stat().st_blocks * 512, _lines(path), held)


def _folder(path: Path, target: Path) -> Leftover:
    lock = lock_folder(path)
    if lock is not None:
        os.close(lock)
    nbytes = sum(inner.lstat().st_blocks * 512 for inner in _tree(path))
    in_use = lock is None or any(map(is_written, map(str, path.glob("journal*.jsonl"))))
    return Leftover(path, target, nbytes, _finished(path), in_use)


def _is_of_a_step(path: Path) -> bool:
    """True for a complete output that holds nothing else, for what its merge left, and for scores."""
    if path.name in (SCORES, f"{SCORES}.new") and path.is_file() and not path.is_symlink():
        return True
    return _examine(path) is not None or (plan_of(path) is not None and not OwnFiles(path).in_the_way({}))


def _tree(folder: Path) -> Iterator[Path]:
    return (Path(where) / name for where, folders, files in os.walk(folder) for name in (*folders, *files))


def _finished(folder: Path) -> int:
    return sum(_lines(path) for path in folder.glob("journal*.jsonl") if path.is_file())


def _lines(journal: Path) -> int:
    """Return how many lines follow the first one."""
    return max(0, journal.read_bytes().count(b"\n") - 1)
