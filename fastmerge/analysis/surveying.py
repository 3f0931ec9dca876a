"""The pass over all tensors: on every core, each tensor by one thread, within the budget."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

from ..engine.reading import DeltaReader, reading_bytes
from ..engine.working import torch_at_rest
from ..errors import BudgetError
from .family import Family, Matched
from .journal import Journal, Known
from .matrices import ranks, ranks_bytes
from .measures import measure, measure_bytes

__all__ = ["delta_nbytes", "nbytes_of_survey", "survey", "workers_within"]


def survey(family: Family, reader: DeltaReader, journal: Journal, exact: bool, workers: int) -> dict[str, Known]:
    """Return what is found of every tensor, in the family's order; the journal learns of each as it is known."""
    found = dict(journal.known)
    reader.tell(sum(nbytes_of_survey(tensor) for tensor in family.tensors if tensor.name in found))

    stopped = threading.Event()

    def look(tensor: Matched) -> None:
        if stopped.is_set():
            return
        try:
            torch.set_num_threads(1)  # of this thread
            measured = measure(reader, tensor, family.labels)
            known = Known(measured, ranks(reader, tensor, exact) if tensor.is_matrix else None)
            journal.add(tensor.name, known)
            found[tensor.name] = known
        except BaseException:
            stopped.set()
            raise

    # The largest first, so that none is left alone in the end.
    rest = sorted((tensor for tensor in family.tensors if tensor.name not in found), key=_work, reverse=True)
    with torch_at_rest(), ThreadPoolExecutor(workers, "analyze") as pool:
        futures = [pool.submit(look, tensor) for tensor in rest]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stopped.set()
    _give_back()
    return {tensor.name: found[tensor.name] for tensor in family.tensors}


def _give_back() -> None:
    """Return to the system what the allocator kept for the threads that are gone, before whole matrices need it."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _work(tensor: Matched) -> int:
    return tensor.base.numel * (4 if tensor.is_matrix else 1)


def workers_within(family: Family, exact: bool, ram: int) -> int:
    """Return how many threads the budget allows, one per core at most.

    Raises:
        BudgetError: not even the tensor that needs most fits alone.
    """
    needs = sorted((_needed(tensor, exact) for tensor in family.tensors), key=lambda need: -need[0])
    if needs and needs[0][0] > ram:
        raise BudgetError(
            f"the memory budget of {ram} bytes is too small: {needs[0][1]} takes up to {needs[0][0]} (--ram)"
        )
    workers = 1
    while workers < min(len(os.sched_getaffinity(0)), len(needs)) and _sum(needs[: workers + 1]) <= ram:
        workers += 1
    return workers


def _sum(needs: Iterable[tuple[int, str]]) -> int:
    return sum(need for need, _ in needs)


def _needed(tensor: Matched, exact: bool) -> tuple[int, str]:
    """Return the bytes that the tensor takes at most, and what takes them."""
    steps = [(measure_bytes([tensor]), "counting changes and signs")]
    if tensor.is_matrix:
        steps.append((ranks_bytes([tensor], exact), "stable ranks"))
    need, step = max(steps)
    return reading_bytes([tensor.group]) + need, step


def nbytes_of_survey(tensor: Matched) -> int:
    """Return the bytes that are read of a tensor: once, and once more by models where it is a matrix."""
    nbytes = sum(part.nbytes for part in tensor.group)
    return nbytes + delta_nbytes(tensor) if tensor.is_matrix else nbytes


def delta_nbytes(tensor: Matched) -> int:
    """Return the bytes read where the delta of every model is formed in turn."""
    return sum(tensor.base.nbytes + model.nbytes for model in tensor.models)
