"""Where the intermediate results of a recipe of several documents lie: in memory, or beside the output."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import FastmergeError, OutputError, explained
from .folders import lock_folder

MEMORY = Path("/dev/shm")
"""A folder in memory."""

SCORES = "scores.json"
"""What a search for a soup (``averaging.greedy``) has scored, among its intermediate results."""


def place_in_memory(target: Path) -> Path:
    """Return where in memory the intermediate results of an output lie."""
    return MEMORY / f"fastmerge-{os.getuid()}-{hashlib.sha256(os.fsencode(target)).hexdigest()[:16]}"


def place_on_disk(target: Path) -> Path:
    """Return where beside an output its intermediate results lie."""
    return target.with_name(f".{target.name}.steps")


def fits_in_memory(nbytes: int) -> bool:
    """True where so many bytes of results leave half of the memory's folder free."""
    try:
        return os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2 * nbytes
    except OSError:
        return False


@contextlib.contextmanager
def intermediates_of(target: Path, in_memory: bool) -> Iterator[Path]:
    """Yield a folder for the intermediate results of ``target``, for its owner alone, and remove it in the end.

    On the disk it stays when the block fails, for the next run to go on with, and the error says so.

    Raises:
        OutputError: another process works there, or it is somebody else's.
    """
    place = place_in_memory(target) if in_memory else place_on_disk(target)
    with explained(str(place), "making the folder"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
        lock = lock_folder(place)  # refuses links
    if lock is None:
        raise OutputError(f"{target}: another fastmerge is writing it (it works in {place})")
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            raise OutputError(f"{place} belongs to another user; remove it")
        yield place
    except BaseException as error:
        if not in_memory and any(place.iterdir()) and isinstance(error, FastmergeError | KeyboardInterrupt):
            left = f"intermediate results are kept in {place}; fastmerge clean {target} removes them"
            error.args = ("; ".join(filter(None, (str(error), left))),)
        if in_memory or not any(place.iterdir()):
            shutil.rmtree(place, ignore_errors=True)
        raise
    else:
        shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(lock)
