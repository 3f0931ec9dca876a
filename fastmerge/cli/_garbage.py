"""Garbage collection of a process that is one command: what it imports and plans stays, so that none is in it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Collect nothing until ``collect_from_here``, nor as the process ends: of what is there the system disposes."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()


def collect_from_here() -> None:
    """Collect again, in a command that works for long; what was there before is not looked at."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
