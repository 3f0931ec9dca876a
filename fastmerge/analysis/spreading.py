"""Work on tensors, each by one thread, on every core that the memory budget allows."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

from ..engine.working import torch_at_rest
from ..errors import BudgetError

__all__ = ["spread", "workers_within"]

Item = TypeVar("Item")


def spread(items: Iterable[Item], look: Callable[[Item], None], work: Callable[[Item], int], workers: int) -> None:
    """Call ``look`` with every item, those with the most ``work`` first, so that none is left alone in the end.

    The first error stops the others and is raised.
    """
    stopped = threading.Event()

    def begin(item: Item) -> None:
        if stopped.is_set():
            return
        try:
            torch.set_num_threads(1)  # of this thread
            look(item)
        except BaseException:
            stopped.set()
            raise
        finally:
            _give_back()

    with torch_at_rest(), ThreadPoolExecutor(workers, "analyze") as pool:
        futures = [pool.submit(begin, item) for item in sorted(items, key=work, reverse=True)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stopped.set()


def _give_back() -> None:
    """Return to the system what the allocator kept of an item: that of all threads may exceed the budget."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def workers_within(needs: Sequence[tuple[int, str]], ram: int, held: int = 0) -> int:
    """Return how many threads the budget allows, one per core at most.

    Args:
        needs: the bytes that each item takes at most, and what takes them.
        held:  bytes that are held beside them meanwhile.
    Raises:
        BudgetError: not even the item that needs most fits alone.
    """
    needs = sorted(needs, key=lambda need: -need[0])
    if needs and held + needs[0][0] > ram:
        raise BudgetError(
            f"the memory budget of {ram} bytes is too small: {needs[0][1]} takes up to {held + needs[0][0]} (--ram)"
        )
    workers = 1
    while workers < min(len(os.sched_getaffinity(0)), len(needs)) and held + _sum(needs[: workers + 1]) <= ram:
        workers += 1
    return workers


def _sum(needs: Iterable[tuple[int, str]]) -> int:
    return sum(need for need, _ in needs)
