"""Reading inputs and writing outputs: large explicit requests from and into the arena."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime

from ..checkpoint import InputFile
from ..checkpoint.joined import Joined
from ..checkpoint.joining import read_joined
from ..errors import CheckpointError, InputChanged, OutputError, explained
from ..plan.types import Shard
from .arena import PAGE
from .caching import is_local, libc, resident

# Bytes of a file that are looked for in the page cache.
PROBES = 32

# Of fallocate(2).
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class InputFiles:
    """The files that a run reads. They must be, from the first byte to the last, what the plan saw."""

    def __init__(self, files: Iterable[InputFile]):
        every = list(files)
        self._files = {file.path: file for file in every}
        # Models under several keys of one folder have a file in common, each with a layout of its own tensors.
        layouts: dict[str, dict[int, Joined]] = {}
        for file in every:
            if file.joined:
                layouts.setdefault(file.path, {}).update((tensor.start, tensor) for tensor in file.joined)
        self._joined = {path: [found[start] for start in sorted(found)] for path, found in layouts.items()}
        self._open: dict[str, int] = {}
        self._cached: dict[str, bool] = {}
        self._ahead: Callable[[str, int, memoryview], bool] | None = None
        _allow_open_files(2 * len(self._files))

    def open(self) -> None:
        """Open every file; CheckpointError names one that is missing or changed since the plan was made."""
        for path in self._files:
            try:
                self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
        self.check()

    def check(self) -> None:
        """Raise CheckpointError if a file is no longer the one of the plan."""
        for path, file in self._files.items():
            try:
                status = os.stat(path)
            except OSError as error:
                raise CheckpointError(f"{path}: disappeared during the merge: {error.strerror}") from error
            if (status.st_size, status.st_mtime_ns) != (file.nbytes, file.mtime_ns):
                how = f"{file.nbytes} bytes then, {status.st_size} now"
                if status.st_size == file.nbytes:
                    then, now = (datetime.fromtimestamp(ns / 1e9) for ns in (file.mtime_ns, status.st_mtime_ns))
                    how = f"its size is the same, but it was written again: {now}, not {then}"
                raise InputChanged(f"{path}: changed since the merge was planned ({how}); run the merge again")

    @property
    def paths(self) -> Sequence[str]:
        return list(self._files)

    def nbytes(self, path: str) -> int:
        """Return the bytes of a file."""
        return self._files[path].nbytes

    def descriptor(self, path: str) -> int:
        """Return the descriptor of an open file."""
        return self._open[path]

    @contextlib.contextmanager
    def ahead(self, read: Callable[[str, int, memoryview], bool]) -> Iterator[None]:
        """Let ``read`` fill memory in place of ``InputFiles.read``, which does what it declines by False."""
        self._ahead = read
        try:
            yield
        finally:
            self._ahead = None

    def cached(self, path: str) -> bool:
        """True when most of an open file was in the page cache when this was asked first, or that cannot be known."""
        if path not in self._cached:
            self._cached[path] = self.probe(path)
        return self._cached[path]

    def probe(self, path: str) -> bool:
        """True when most of an open file is in the page cache, as far as a few pages tell, or that cannot be known."""
        nbytes = self._files[path].nbytes
        step = max(1, nbytes // PROBES)
        places = range(random.randrange(step), nbytes, step)  # others each time: see ``resident``
        try:
            missing = len(places) - resident(self._open[path], path, nbytes, places)
        except (OSError, ValueError):  # the system cannot tell, or the file is no longer that long
            return True
        return 2 * missing <= len(places)

    def local(self, path: str) -> bool:
        """True when an open file is known to lie on this machine."""
        return is_local(self._open[path])

    def memory(self, path: str, offset: int, nbytes: int) -> memoryview | None:
        """Return bytes where they lie in memory, for a device to take them from there; None: they have to be read."""
        return None

    def plain(self, path: str, offset: int) -> int | None:
        """Return the descriptor of a file in the page cache where what begins at ``offset`` lies in it as it is."""
        if self._ahead is not None or offset >= self.nbytes(path) or not self.cached(path):
            return None
        return self._open[path]

    def advise(self, path: str, offset: int, nbytes: int) -> None:
        """Let the system read a range into the page cache, if it will; do not wait for it."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._open[path], offset, nbytes, os.POSIX_FADV_WILLNEED)

    def read(self, path: str, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes from ``offset`` on, or with those of a tensor in pieces, which begins there."""
        if self._joined and path in self._joined and offset >= self._files[path].nbytes:
            read_joined(self._joined[path], offset, into, self._read)
        elif self._ahead is None or not self._ahead(path, offset, into):
            self._read(path, offset, into)

    def _read(self, path: str, offset: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            try:
                got = os.preadv(self._open[path], [into[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read at byte {offset + done}: {error.strerror}") from error
            if got == 0:
                end = os.fstat(self._open[path]).st_size
                raise InputChanged(
                    f"{path}: ends at byte {end}, where the header promises {offset + len(into) - end} more; "
                    "the file was truncated while it was read"
                )
            done += got

    def __enter__(self) -> InputFiles:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class OutputFiles:
    """The output files, preallocated; written by direct I/O where the file system has it.

    Direct writes cost a tenth of the CPU time of buffered ones (no page-cache memory to fault in) and
    leave nothing for fsync. They need whole aligned pages, so the ragged ends of a range go through the
    page cache: a page is either direct or buffered, never both.
    """

    def __init__(self, folder: str, shards: Iterable[Shard]):
        self._paths = [os.path.join(folder, shard.filename) for shard in shards]
        self._shards = list(shards)
        self._buffered: list[int] = []
        self._direct: list[int | None] = []
        self._written: set[int] = set()

    def open(self, made: bool = False) -> None:
        """Create (or reopen) every file, reserve its space, write what is known of it; ``made``: that is done already.

        Raises OutputError, with nothing left behind by a fresh start, when the disk is too small.
        """
        _allow_open_files(2 * len(self._shards))
        for path, shard in zip(self._paths, self._shards, strict=True):
            with explained(path, f"needs {sum(s.nbytes for s in self._shards)} bytes"):
                # 0666 less the umask: checkpoints are meant to be read by others where the user allows it.
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                self._buffered.append(fd)
                if not made:
                    _reserve(fd, shard.nbytes)
                    for place, data in shard.known:
                        pwrite(fd, memoryview(data), place)
            self._direct.append(_open_direct(path))
        self._written.update(range(len(self._shards)))

    def write(self, shard: int, offset: int, data: memoryview, address: int) -> None:
        """Write ``data``, which lies at ``address`` (modulo a page) in memory, for ``offset``; see ``Shard.places``."""
        for start, stop, place in self._shards[shard].places(offset, len(data)):
            self._write(shard, place, data[start:stop], address + start)
        self._written.add(shard)

    def _write(self, shard: int, offset: int, data: memoryview, address: int) -> None:
        direct = self._direct[shard]
        with explained(self._paths[shard], f"writing {len(data)} bytes at byte {offset}"):
            head = min(-offset % PAGE, len(data))
            middle = (len(data) - head) // PAGE * PAGE
            if direct is None or middle == 0 or (address - offset) % PAGE:
                return pwrite(self._buffered[shard], data, offset)
            try:
                pwrite(direct, data[head : head + middle], offset + head)
            except OSError as error:
                if error.errno != errno.EINVAL:  # EINVAL: the device wants larger blocks than a page
                    raise
                pwrite(self._buffered[shard], data[head : head + middle], offset + head)
            for start, end in ((0, head), (head + middle, len(data))):
                if start < end:
                    pwrite(self._buffered[shard], data[start:end], offset + start)
        return None

    def read(self, shard: int, offset: int, into: memoryview) -> None:
        """Fill ``into`` with what was written from ``offset`` on."""
        for start, stop, place in self._shards[shard].places(offset, len(into)):
            self._read(shard, place, into[start:stop])

    def _read(self, shard: int, offset: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            with explained(self._paths[shard], "reading it back"):
                got = os.preadv(self._buffered[shard], [into[done:]], offset + done)
            if got == 0:
                raise OutputError(f"{self._paths[shard]}: ends at byte {offset + done}")
            done += got

    def sync_all(self) -> None:
        """Wait until everything that was written is on the disk."""
        self.sync(range(len(self._shards)))

    def sync(self, shards: Iterable[int]) -> None:
        """Wait until everything that was written to these shards is on the disk; each flush is a wait for the disk."""
        for shard in self._written & {*shards}:
            self._written.discard(shard)
            with explained(self._paths[shard], "flushing"):
                os.fdatasync(self._buffered[shard])

    def __enter__(self) -> OutputFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (*self._buffered, *self._direct):
            if fd is not None:
                os.close(fd)
        self._buffered, self._direct = [], []


def _open_direct(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:  # the file system has no direct I/O
        return None


def pwrite(fd: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _reserve(fd: int, nbytes: int) -> None:
    """Reserve the disk space of a file.

    fallocate(2) itself: the C library's posix_fallocate writes a byte into every block where the file system has none.
    """
    status = libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes))
    code = ctypes.get_errno()
    if status == 0:
        if os.fstat(fd).st_size != nbytes:
            os.ftruncate(fd, nbytes)
        return
    if code not in _NOT_SUPPORTED:
        raise OSError(code, os.strerror(code))
    disk = os.fstatvfs(fd)
    missing = nbytes - os.fstat(fd).st_blocks * 512
    if missing > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(fd, nbytes)


def release(path: str, ranges: Iterable[tuple[int, int]]) -> None:
    """Give back the disk space of ranges (offset, bytes) of a file; its size stays. OSError where that cannot be."""
    with open(path, "r+b") as file:
        for offset, nbytes in ranges:
            mode = _PUNCH_HOLE | _KEEP_SIZE
            if libc.fallocate(file.fileno(), mode, ctypes.c_int64(offset), ctypes.c_int64(nbytes)):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))


def _allow_open_files(count: int) -> None:
    """Raise the soft limit of open files where a checkpoint of many shards needs it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + len(os.listdir("/proc/self/fd")) + 64
    if soft != resource.RLIM_INFINITY and wanted > soft:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
