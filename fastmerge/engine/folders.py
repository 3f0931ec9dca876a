"""Where an output goes, and how its folder appears there: when it is complete, or not at all.

Work is done in ``.<name>.partial-<id>/out`` beside the target, on its file system, and renamed. The partial folder is
locked while somebody works in it, so that ``leftovers`` can tell what a killed process left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutputError, explained

__all__ = [
    "appearing", "free_target", "lock_folder", "partial_folder", "partial_prefix", "place_below", "real_target", "sync",
]  # fmt: skip


def real_target(target: str | os.PathLike[str]) -> Path:
    """Return where ``target`` lies behind links and ``..``; a folder can appear there.

    Raises:
        OutputError: it is a file, or named as one, a link to nothing, a mount point, or is or holds the current
            directory.
    """
    named, real = Path(os.path.abspath(target)), Path(os.path.realpath(target))
    if named.suffix == ".gguf":
        raise OutputError(f"{named}: the output is a folder; merge into one, then run fastmerge convert FOLDER {named}")
    if named.is_symlink() and not real.exists():
        raise OutputError(f"{named} is a link to {real}, which does not exist; make that folder, or choose another one")
    if real.exists() and not real.is_dir():
        raise OutputError(f"{named} is a file; choose a folder that does not exist yet")
    for point in _mount_points():
        if point == real or real in point.parents:
            what = "is a mount point" if point == real else f"holds the mount point {point}"
            raise OutputError(
                f"{real} {what}, so no folder can appear there at once; choose one inside it: {real}/merged"
            )
    with contextlib.suppress(FileNotFoundError):  # the current directory was removed
        if (relative := place_below(real, os.getcwd())) is not None:
            what = "is" if relative == "." else "holds"
            raise OutputError(f"{real} {what} the current directory, which must not vanish; choose another folder")
    return real


def place_below(folder: Path, path: str | os.PathLike[str]) -> str | None:
    """Return the place of ``path`` in ``folder`` ("." for the folder itself), or None where it lies elsewhere.

    Folders are compared by what they are, not by their names, so links, bind mounts and spellings do not matter.
    """
    real = Path(os.path.realpath(path))
    for holder in (real, *real.parents):
        with contextlib.suppress(OSError):
            if os.path.samefile(holder, folder):
                return str(real.relative_to(holder))
    return None


def partial_prefix(target: Path) -> str:
    """Return how the names of partial folders of ``target`` begin."""
    return f".{target.name}.partial-"


def lock_folder(folder: Path) -> int | None:
    """Return a descriptor that holds the lock of a folder until it is closed, or None when another process does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_target(target: str | os.PathLike[str]) -> Path:
    """Return ``real_target``, where nothing is yet but an empty folder.

    Raises:
        OutputError: ``target`` exists and is not an empty folder, or cannot be one.
    """
    final = real_target(os.path.expanduser(target))
    if os.path.lexists(final) and any(final.iterdir()):
        raise OutputError(f"{final} exists; choose another folder, or remove it first")
    return final


@contextlib.contextmanager
def appearing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder to write in; it becomes ``target`` when the block ends, and is removed when the block fails.

    Raises:
        OutputError: ``target`` exists and is not an empty folder, cannot be one, or the disk refuses.
    """
    final = free_target(target)
    with partial_folder(final) as out, explained(str(final), "writing", keeps=False):
        yield out
        for path in (*out.iterdir(), out):
            sync(path)
        os.rename(out, final)
        sync(final.parent)


@contextlib.contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside ``target``, in a partial folder of it that is removed when the block ends."""
    with explained(str(target), "making a folder beside it", keeps=False):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=partial_prefix(target), dir=target.parent))
        lock = lock_folder(partial)
    try:
        out = partial / "out"
        out.mkdir()
        yield out
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _mount_points() -> list[Path]:
    """Return where file systems are mounted, bind mounts included."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            fields = [line.split()[4] for line in file]
    except OSError:  # no /proc: what ismount finds is refused when the folder is renamed
        return []
    octal = re.compile(rb"\\([0-7]{3})")
    return [Path(os.fsdecode(octal.sub(lambda m: bytes([int(m[1], 8)]), field))) for field in fields]
