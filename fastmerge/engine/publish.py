"""Where a run works, and how its output gets its final name: all at once, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutputError
from ..plan.types import Plan, TextFile
from .files import explained, libc

_EXCHANGE = 2
_AT_FDCWD = -100


class StagingFolder:
    """The folder ``.<name>.partial-<digest>`` beside the target: journal and, in ``out``, the files of the output.

    Attributes:
        target:  where the output appears when it is complete.
        folder:  the partial folder.
        out:     the output in the making.
        journal: path of the journal.
    """

    def __init__(self, target: Path, plan: Plan, overwrite: bool):
        self.target = Path(os.path.abspath(target))
        self.folder = self.target.with_name(f".{self.target.name}.partial-{plan.digest[:8]}")
        self.out = self.folder / "out"
        self.journal = str(self.folder / "journal.jsonl")
        self._overwrite = overwrite
        self._inputs = [Path(os.path.realpath(model.folder)) for model in plan.models]

    def check_target(self) -> None:
        """Raise OutputError if something is there that must not be replaced."""
        target = self.target
        if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
            return
        if not self._overwrite:
            raise OutputError(f"{target} exists; choose another folder, or replace it with --overwrite")
        if Path(os.path.realpath(target)) in self._inputs:
            raise OutputError(f"{target} is an input of this merge; choose another folder for the output")
        marks = ("fastmerge.json", "config.json")
        if not target.is_dir() or target.is_symlink() or not any((target / mark).is_file() for mark in marks):
            raise OutputError(
                f"{target} is not a checkpoint (a folder with {' or '.join(marks)}), so --overwrite does not replace it"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the target: one run at a time. Makes the parent folder."""
        path = self.target.with_name(f".{self.target.name}.lock")
        with explained(str(path), "locking the target"):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            fd = _lock(path)
        if fd is None:
            raise OutputError(f"{self.target}: another fastmerge is writing it (it holds {path})")
        try:
            yield
        finally:
            os.unlink(path)
            os.close(fd)

    def make(self) -> None:
        """Make the folders; files of an earlier run are kept."""
        with explained(str(self.folder), "making the folder"):
            self.out.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Remove the partial folder."""
        shutil.rmtree(self.folder)

    def write_small_files(self, plan: Plan, manifest: str) -> None:
        """Write index, configuration, tokenizer files and the manifest."""
        files: dict[str, bytes | Path] = {"fastmerge.json": manifest.encode()}
        if plan.index is not None:
            files["model.safetensors.index.json"] = plan.index.encode()
        for name, file in plan.files.items():
            files[name] = file.text.encode() if isinstance(file, TextFile) else Path(file.path)
        for name, content in files.items():
            path = self.out / name
            with explained(str(path), "writing"):
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "wb") as out:
                    if isinstance(content, bytes):
                        out.write(content)
                    else:
                        with open(content, "rb") as source:
                            shutil.copyfileobj(source, out)
                    out.flush()
                    os.fsync(out.fileno())

    def publish(self) -> None:
        """Give the output its final name and remove the rest."""
        with explained(str(self.target), "publishing the output"):
            _sync_folder(self.out)
            self.check_target()
            if self.target.is_dir() and any(self.target.iterdir()):
                _exchange(self.out, self.target, self.folder / "replaced")
            else:
                os.rename(self.out, self.target)
            _sync_folder(self.target.parent)
        self.discard()


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock file, or None when another process does."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file between our open and our lock.
            if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        os.close(fd)


def _exchange(new: Path, target: Path, aside: Path) -> None:
    """Put ``new`` in the place of ``target``, atomically where the file system can."""
    status = libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _EXCHANGE)
    if status == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    os.rename(target, aside)
    os.rename(new, target)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
