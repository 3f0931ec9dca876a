"""Run a command to its end and until its output is durable; report wall time, CPU time and peak memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What one run of a command took.

    Attributes:
        seconds:     from its start until its output is on the disk.
        cpu_seconds: user and system time of its processes.
        peak_rss:    most resident memory of one process, in bytes, pages of mapped files included.
        stdout:      what it printed.
    """

    seconds: float
    cpu_seconds: float
    peak_rss: int
    stdout: str


def run(command: Sequence[str | Path], output: Path | None = None, log: Path | None = None) -> Usage:
    """Run ``command``, then fsync every file under ``output`` (a program that did so already loses nothing).

    Call it from a small process: the peak memory of a child is at least that of its parent.

    Raises:
        RuntimeError: the command failed; its last lines of standard error are in the message.
    """
    # An installed program has its bytecode; a checkout must be allowed to keep that of its first run.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with open(log or os.devnull, "w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        stdout = process.stdout.read()
        _, status, rusage = os.wait4(process.pid, 0)
        # Popen must not wait for it again.
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if output is not None and output.exists():
            _fsync(output)
        seconds = time.perf_counter() - start
        if process.returncode != 0:
            errors.seek(0)
            tail = "\n".join(errors.read().splitlines()[-15:])
            raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{tail}")
    return Usage(seconds, rusage.ru_utime + rusage.ru_stime, 1024 * rusage.ru_maxrss, stdout)


def columns(usages: Sequence[Usage]) -> dict[str, float]:
    """Return the columns ``cpu_ms`` and ``peak_rss_mb``: medians over runs."""
    return {
        "cpu_ms": 1e3 * statistics.median(usage.cpu_seconds for usage in usages),
        "peak_rss_mb": 1e-6 * statistics.median(usage.peak_rss for usage in usages),
    }


def _fsync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def warm_cache(folder: Path) -> None:
    """Read every file under ``folder``, so that it lies in the page cache."""
    buffer = bytearray(4 << 20)
    for path in folder.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def filesystem(folder: Path) -> str:
    """Return the type of the file system that holds ``folder``, or "" where the system does not say."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return ""
    types = {Path(line.split()[1]): line.split()[2] for line in mounts.read_text().splitlines()}
    folder = folder.resolve()
    return next((types[path] for path in (folder, *folder.parents) if path in types), "")


def drop_cache(folder: Path) -> None:
    """Write back and drop what the page cache has of every file under ``folder``; no other files, and no root."""
    os.sync()  # pages that are still to be written stay
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
