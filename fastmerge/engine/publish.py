"""Where a run works, and how its output gets its final name: all at once, or not at all.

An existing output is exchanged with the new one in one step and removed after that, so a crash at any instant leaves
the old or the new. Where a file system cannot exchange folders, the old one is renamed aside first; a crash between
the two renames leaves both in the partial folder, and the next run, or ``fastmerge clean``, puts the old one back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from ..errors import CheckpointError, OutputError, explained
from ..plan.types import Plan, SmallFile, TextFile
from .files import libc
from .folders import lock_folder, partial_prefix, real_target, sync
from .manifest import FILENAME, read_manifest
from .replacing import OwnFiles

_EXCHANGE = 2
_AT_FDCWD = -100

RANKS = "ranks"
"""Name of the file in a partial folder by which ranks know that they all see the same one."""

LOCKED = b"locked by fastmerge\n"
"""Content of a lock file."""


class StagingFolder:
    """The folder ``.<name>.partial-<digest>`` beside the target: journal and, in ``out``, the files of the output.

    Attributes:
        target:  where the output appears when it is complete, behind all links.
        folder:  the partial folder.
        out:     the output in the making.
        journal: path of the journal.
    """

    def __init__(self, target: Path, plan: Plan, overwrite: bool):
        self.target = real_target(target)
        self.folder = self.target.with_name(f"{partial_prefix(self.target)}{plan.digest[:8]}")
        self.out = self.folder / "out"
        self.journal = str(self.folder / "journal.jsonl")
        self._plan, self._overwrite = plan, overwrite
        self._needed = _needed(plan)
        self._small_files: list[dict[str, Any]] | None = None

    def check_target(self) -> None:
        """Raise OutputError if something is there that must not be replaced."""
        target = self.target
        if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
            return
        way = OwnFiles(target).in_the_way(self._needed)
        if not self._overwrite:
            complete = " and is complete, made by this recipe" if plan_of(target) == self._plan.digest else ""
            remedy = "" if way else ", or replace it with --overwrite"
            raise OutputError(f"{target} exists{complete}; choose another folder{remedy}")
        if way:
            raise OutputError(
                f"{target} is not replaced, since that is done only where fastmerge wrote everything and nothing is "
                f"needed; in the way: {', '.join(way)}; choose another folder, or move them away"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the target: one run at a time. Makes the parent folder."""
        with hold(self.target):
            self.recover()
            yield

    def recover(self) -> None:
        """Tidy what a crash left while an output was published; the target is the old output or the new one after."""
        with explained(str(self.folder), "tidying what an interrupted run left"):
            settle(self.folder, self.target, self._plan.digest)
            if self.folder.is_dir() and not self.out.exists() and plan_of(self.target) == self._plan.digest:
                self.discard()

    @contextlib.contextmanager
    def made(self) -> Iterator[None]:
        """Make the folders and hold their lock; weights of an earlier run are kept."""
        try:
            lock = self._make()
        except KeyboardInterrupt:
            if not os.path.exists(self.journal) and self.folder.exists():
                self.discard()
            raise
        try:
            yield
        finally:
            os.close(lock)

    def _make(self) -> int:
        """Make the folders, empty but for weights of an earlier run, and return their lock."""
        with explained(str(self.folder), "making the folder"):
            self.folder.mkdir(exist_ok=True)
            lock = lock_folder(self.folder)
            if lock is None:
                raise OutputError(f"{self.folder}: another process works there")
            self.out.mkdir(exist_ok=True)
            weights = {shard.filename for shard in self._plan.shards}
            for path in self.out.iterdir():
                if path.name not in weights:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return lock

    def discard(self) -> None:
        """Remove the partial folder."""
        shutil.rmtree(self.folder)

    def write_small_files(self) -> list[dict[str, Any]]:
        """Write index, configuration and tokenizer files, once, and return what the manifest lists of them."""
        if self._small_files is None:
            files = dict(self._plan.files)
            if self._plan.index is not None:
                files["model.safetensors.index.json"] = TextFile(self._plan.index)
            self._small_files = [self._write(name, file) for name, file in files.items()]
        return self._small_files

    def write_manifest(self, text: str) -> None:
        """Write the manifest, the last file of an output."""
        self._write(FILENAME, TextFile(text))

    def _write(self, name: str, file: SmallFile) -> dict[str, Any]:
        path = self.out / name
        with explained(str(path), "writing"):
            path.parent.mkdir(parents=True, exist_ok=True)
            digest, nbytes = xxhash.xxh3_64(), 0
            with file.open() as source, open(path, "wb") as out:
                while piece := source.read(1 << 20):
                    out.write(piece)
                    digest.update(piece)
                    nbytes += len(piece)
                out.flush()
                os.fsync(out.fileno())
        return {"name": name, "bytes": nbytes, "xxh3": digest.hexdigest()}

    def publish(self) -> None:
        """Give the output its final name and remove the rest."""
        with explained(str(self.target), "publishing the output"):
            for folder in (*(path for path in self.out.rglob("*") if path.is_dir()), self.out):
                sync(folder)
            self.check_target()
            if self.target.is_dir() and any(self.target.iterdir()):
                _replace(self.folder, self.target)
                settle(self.folder, self.target, self._plan.digest)
            else:
                os.rename(self.out, self.target)
            sync(self.target.parent)
        with explained(str(self.folder), "tidying"):
            self.discard()


@contextlib.contextmanager
def hold(target: Path) -> Iterator[None]:
    """Hold the lock of ``target``, ``.<name>.lock`` beside it; makes the folder that it lies in.

    Raises:
        OutputError: another process holds it.
    """
    path = target.with_name(f".{target.name}.lock")
    with explained(str(path), "locking the target"):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
    if descriptor is None:
        raise OutputError(f"{target}: another fastmerge is writing it (it holds {path})")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # without it the next run takes the lock of a process that is no more
            os.unlink(path)
        os.close(descriptor)


def is_held(lock: Path) -> bool:
    """True when a process holds a lock file."""
    with open(lock, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def plan_of(folder: Path) -> str | None:
    """Return the digest of the plan of a complete output, or None for anything else."""
    try:
        return read_manifest(folder).get("plan")
    except CheckpointError:
        return None


def settle(folder: Path, target: Path, digest: str | None) -> None:
    """Bring a partial folder whose output was being published to a state before or after that.

    ``out`` is the finished output of the plan ``digest``, or absent; ``swap`` and ``aside`` are gone. Without a digest
    a finished output that was not published yet is removed.
    """
    swap, aside = folder / "swap", folder / "aside"
    if aside.exists():
        if not os.path.lexists(target):
            os.rename(aside, target)
        else:
            _remove(aside)
    if swap.exists():
        if digest is not None and plan_of(swap) == digest != plan_of(target):
            os.rename(swap, folder / "out")
        else:
            _remove(swap)


def _remove(folder: Path) -> None:
    """Remove an output that was replaced."""
    if not OwnFiles(folder).remove():
        kept = folder.parent.with_name(f"{folder.parent.name}-kept")
        os.rename(folder, kept)
        raise OutputError(
            f"{kept}: holds files that appeared while the output was replaced; the new output is complete"
        )


def _replace(folder: Path, target: Path) -> None:
    """Put ``folder/out`` in the place of ``target``, atomically where the file system can; ``folder`` gets the old."""
    swap, aside = folder / "swap", folder / "aside"
    os.rename(folder / "out", swap)
    if not _exchange(swap, target):
        os.rename(target, aside)
        os.rename(swap, target)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places; False where the file system cannot."""
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    return False


def _needed(plan: Plan) -> dict[str, str]:
    """Return the paths that a merge needs and must not remove, and what each of them is."""
    needed: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError):  # the current directory was removed
        needed[os.getcwd()] = "the current directory"
    for model in plan.models:
        for path in (model.folder, *(file.path for file in model.files)):
            needed[path] = f"the input {model.reference}"
    for name, file in plan.files.items():
        needed |= dict.fromkeys(file.sources, f"the source of {name}")
    if plan.recipe_file is not None:
        needed[plan.recipe_file] = "the recipe"
    return needed


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock file, or None when another process does."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file between our open and our lock.
            if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
                os.pwrite(fd, LOCKED, 0)
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:  # the disk is full: what is empty holds nothing
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(fd)
            raise
        os.close(fd)
