"""Files that stand where another file should be: links that lead nowhere, pointers of Git LFS, web pages."""

from __future__ import annotations

import os
import stat

_STARTS = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself", "run git lfs pull in its repository"),
    (b"version https://hawser", "is a pointer of Git LFS, not the file itself", "run git lfs pull in its repository"),
    (b"/annex/objects/", "is a pointer of git-annex, not the file itself", "run git annex get on it"),
    (b"<!doctype html", "is a web page, not the file itself", "download the file, not the page about it"),
    (b"<html", "is a web page, not the file itself", "download the file, not the page about it"),
)

_KINDS = (
    (b"PK\x03\x04", ".bin", "is an archive of PyTorch"),
    (b"GGUF", ".gguf", "is a GGUF file"),
    (b"\x80\x02", ".bin", "is a pickle"),
    (b"\x89HDF", ".h5", "is an HDF5 file"),
)


def placeholder(path: str) -> str | None:
    """Return what ``path`` is and what to do, where it is not the file that its name promises; None where it may be."""
    if not os.path.exists(path):
        if os.path.islink(path):
            return f"is a link to {os.readlink(path)}, which does not exist (download the file again, or mend the link)"
        return None
    start = _first_bytes(path, 64)
    if start is None:
        return None
    if not start:
        return "is empty (download or save it again)"
    for prefix, what, remedy in _STARTS:
        if start.lstrip().lower().startswith(prefix):
            return f"{what} ({remedy})"
    return None


def misnamed(path: str) -> str | None:
    """Return what the first bytes of ``path`` say where its ending says something else."""
    start = _first_bytes(path, 8) or b""
    return next(
        (what for prefix, ending, what in _KINDS if start.startswith(prefix) and not path.endswith(ending)), None
    )


def _first_bytes(path: str, count: int) -> bytes | None:
    """Return the first bytes of a file; None where it cannot be read, or is a pipe or a device."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.read(descriptor, count)
        finally:
            os.close(descriptor)
    except OSError:
        return None
