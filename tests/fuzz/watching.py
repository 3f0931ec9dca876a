"""What must hold while a case is used: errors that a user can act on, little time and memory, no other files."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import fastmerge
from fastmerge import kernels
from fastmerge.errors import FastmergeError

SECONDS = 20
"""A case takes milliseconds; one that takes so long hangs."""

GROWTH = 512 << 20
"""Bytes by which the peak memory of the process may grow in one case: the budget of its merges, and as much again."""

_OWN = tuple(
    os.path.realpath(os.path.expanduser(path))
    for path in (
        *sys.path,
        sysconfig.get_paths()["stdlib"],
        *fastmerge.__path__,
        *kernels.__path__,
        "~/.cache/huggingface",
        "/usr",
        "/lib",
        "/proc",
        "/sys",
    )
    if path and path != os.getcwd()
)
"""What Python, the package and libraries open of their own: modules are loaded when they are used."""


class Finding(AssertionError):
    """Something that must not happen."""


_inside: Path | None = None
_opened: list[str] = []


def _audit(event: str, arguments: tuple) -> None:
    if _inside is not None and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _opened.append(os.fsdecode(arguments[0]))


_hooked = False


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Watch what is done with the case in ``folder``; ``Finding`` says what went wrong. Main thread only."""
    global _inside, _hooked
    if not _hooked:
        sys.addaudithook(_audit)  # cannot be taken out again
        _hooked = True
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def late(number: int, frame: object) -> None:
        raise Finding(f"takes more than {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _opened.clear()
    _inside = folder
    try:
        yield
    except FastmergeError:
        pass
    except Finding:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Finding(f"{type(error).__name__}: {error}"[:500]) from error
    finally:
        _inside = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > GROWTH:
        raise Finding(f"took {grown} bytes of memory")
    if outside := [path for path in _opened if not _belongs(path, folder)]:
        raise Finding(f"opened {outside[0]}, outside of the folder")


def _belongs(path: str, folder: Path) -> bool:
    real = os.path.realpath(path if os.path.isabs(path) else folder / path)
    home = os.path.realpath(folder)
    return real == home or real.startswith((home + os.sep, *_OWN))
