"""Opening files of a checkpoint that nobody vouches for: regular files only, small ones within their folder.

A pipe or a device under a weight's name would be read for ever. Small files (configs, templates, tokenizers) are
copied into outputs, which are published: a link out of the folder could carry anything there. Links of the hub's cache
lead to its own ``blobs``. Weights may lie behind links: they are safetensors or are refused.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, BinaryIO, NamedTuple

import xxhash

from ..errors import CheckpointError
from .placeholders import placeholder

MOST_BYTES = 128 << 20
"""Longest small file that is read: tokenizers and indexes have up to 40 MB."""


class SmallFile(NamedTuple):
    """A small file that was read: its length in bytes and the xxh3-64 of what was read, as 16 hex digits."""

    nbytes: int
    xxh3: str


_seen: ContextVar[dict[str, SmallFile] | None] = ContextVar("_seen", default=None)


@contextlib.contextmanager
def noting_reads() -> Iterator[dict[str, SmallFile]]:
    """Yield what ``open_small`` reads inside the block, by path."""
    seen: dict[str, SmallFile] = {}
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


def open_weights(path: str) -> BinaryIO:
    """Open a file of weights; OSError as ``open`` raises it, CheckpointError for what is no regular file."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: is a pipe, a socket or a device, not a file")
    # Without O_NONBLOCK, a pipe that takes its place now would be waited for.
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")


def open_small(path: str) -> BinaryIO:
    """Return the content of a small file of a checkpoint, within its folder; OSError as ``open`` raises it."""
    with _checked(path) as file:
        data = file.read(MOST_BYTES + 1)
    seen = _seen.get()
    if seen is not None:
        seen[path] = SmallFile(len(data), xxhash.xxh3_64_hexdigest(data))
    return io.BytesIO(data)


def _checked(path: str) -> BinaryIO:
    if out := leads_out(path):
        raise CheckpointError(f"{path}: is a link out of its folder, to {out} (copy that file into the folder)")
    file = open_weights(path)
    size = os.fstat(file.fileno()).st_size
    if size > MOST_BYTES:
        file.close()
        raise CheckpointError(f"{path}: has {size} bytes, more than the {MOST_BYTES} of such a file")
    return file


def read_text(path: str) -> str:
    """Return the text of a small file of a checkpoint (``open_small``); UnicodeDecodeError where it is no UTF-8."""
    with io.TextIOWrapper(open_small(path), encoding="utf-8") as file:
        return file.read()


def leads_out(path: str) -> str | None:
    """Return where a file lies, when that is outside of the folder that it is named in; None inside."""
    home, target = os.path.realpath(os.path.dirname(path)), os.path.realpath(path)
    if target.startswith(home + os.sep) or not os.path.lexists(target):
        return None
    blobs = os.path.dirname(target)
    cached = os.path.basename(blobs) == "blobs" and os.path.isdir(os.path.join(os.path.dirname(blobs), "snapshots"))
    return None if cached else target


def why_not_small(path: str) -> str | None:
    """Return why a small file cannot be taken, or None."""
    try:
        _checked(path).close()
    except CheckpointError as error:
        return str(error).removeprefix(f"{path}: ")
    except OSError as error:
        return placeholder(path) or f"cannot be read: {error.strerror}"
    return None


def check_characters(text: str, value: Any) -> None:
    """Raise ValueError where JSON holds half of a character (a lone surrogate), which no file can be written with."""
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("it holds half of a character, an escape such as \\ud800") from error
