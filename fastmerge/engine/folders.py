"""An output folder that appears under its name when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutputError
from .files import explained

__all__ = ["appearing"]


@contextlib.contextmanager
def appearing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder to write in; it becomes ``target`` when the block ends, and is removed when the block fails.

    Raises:
        OutputError: ``target`` exists and is not an empty folder, or the disk refuses.
    """
    final = Path(os.path.abspath(os.path.expanduser(target)))
    if os.path.lexists(final) and not (final.is_dir() and not any(final.iterdir())):
        raise OutputError(f"{final} exists; choose another folder with --out, or remove it first")
    with explained(str(final), "making the folder"):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=final.parent))
    try:
        yield partial
        with explained(str(final), "publishing the output"):
            # mkdtemp makes a folder for its owner alone; an output is for everybody whom the umask lets in.
            os.umask(umask := os.umask(0))
            partial.chmod(0o777 & ~umask)
            for path in (*partial.iterdir(), partial):
                _sync(path)
            os.rename(partial, final)
            _sync(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
