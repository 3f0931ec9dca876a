"""Files that stand where another file should be: links that lead nowhere, pointers of Git LFS, web pages."""

from __future__ import annotations

import os

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
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        return None
    if not start:
        return "is empty (download or save it again)"
    for prefix, what, remedy in _STARTS:
        if start.lstrip().lower().startswith(prefix):
            return f"{what} ({remedy})"
    return None


def misnamed(path: str) -> str | None:
    """Return what the first bytes of ``path`` say where its ending says something else."""
    with open(path, "rb") as file:
        start = file.read(8)
    return next(
        (what for prefix, ending, what in _KINDS if start.startswith(prefix) and not path.endswith(ending)), None
    )
