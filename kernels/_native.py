"""The compiled CPU extension ``fastmerge._C``: found on first use, and the reason when it is missing.

Below it stands how both compiled backends take arguments: as integers in a row, which are addresses and numbers, and
scalars in another (csrc/arguments.h). Rows of many jobs are flat, since every object in them costs time per tensor.
"""

from __future__ import annotations

import contextlib
import functools
from array import array
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from ._checks import CODES
from ._found import FoundFactors
from ._jobs import DIVIDES, VOTES, MergeJob, SelectJob, SumJob, numbers
from .keep import Keep

if TYPE_CHECKING:
    from torch import Tensor

# That of csrc/arguments.h.
INTERFACE = 13


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        from fastmerge import _C
    except ImportError as error:
        return None, (
            f"the CPU kernels are missing ({error}), so PyTorch computes alone, many times slower; install a C++17 "
            "compiler with Python's headers (Debian: g++ python3-dev), then install fastmerge again"
        )
    why = why_outdated(_C)
    return (None, why) if why else (_C, None)


def why_outdated(module: ModuleType) -> str | None:
    """Return why an extension that was built from other sources than these cannot be called, or None."""
    if getattr(module, "interface", 0) == INTERFACE:
        return None
    return (
        f"the extension {module.__name__} was built from other sources than kernels/; build it again, in a checkout "
        "with: python setup.py build_ext --inplace"
    )


def cpu_extension() -> ModuleType:
    """Return ``fastmerge._C``; call only after ``why_no_cpu_extension()`` returned None."""
    module, why = _load()
    if module is None:
        raise RuntimeError(why)
    return module


def why_no_cpu_extension() -> str | None:
    """Return the reason why the CPU extension cannot be used, or None."""
    return _load()[1]


@contextlib.contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Let operations of the processor take no more threads each, in the whole process; None limits nothing."""
    if threads is None or why_no_cpu_extension() is not None:
        yield
        return
    pool = cpu_extension()
    before = pool.get_threads()
    pool.set_threads(min(threads, before))
    try:
        yield
    finally:
        pool.set_threads(before)


def array_pair(tensor: Tensor) -> tuple[int, int]:
    """Return ``(address, dtype number)`` of a tensor."""
    code = CODES[tensor.dtype]
    assert code is not None, "checks refuse other types"
    return tensor.data_ptr(), code


def arrays(tensors: Sequence[Tensor], base: Tensor | None) -> list[int]:
    """Return elements, number of tensors, and the pairs of the base and of each tensor; address 0 is no base."""
    ints = [tensors[0].numel(), len(tensors)]
    ints += (0, 0) if base is None else array_pair(base)
    for tensor in tensors:
        ints += array_pair(tensor)
    return ints


def rules(keeps: Sequence[Keep]) -> list[int]:
    """Return the integers of keep rules, one after the other."""
    ints: list[int] = []
    for keep in keeps:
        ints += keep.integers()
        if keep.row:
            ints += (keep.row, keep.stride)
        else:
            ints.append(0 if keep.inside is None else keep.inside.address)
            ints.append(0 if keep.outside is None else keep.outside.address)
        ints.append(0 if keep.drawn is None else keep.drawn.data_ptr())
    return ints


def sums(jobs: Sequence[SumJob]) -> tuple[array[int], array[float]]:
    """Return the integers and scalars of checked jobs."""
    ints: list[int] = []
    scalars: list[float] = []
    for job in jobs:
        ints += array_pair(job.out)
        ints += arrays(job.tensors, None)
        ints.append(job.weights.address if isinstance(job.weights, FoundFactors) else 0)
        scalars += numbers(job.weights)
    return array("q", ints), array("f", scalars)


def merges(jobs: Sequence[MergeJob]) -> tuple[array[int], array[float]]:
    """Return the integers and scalars of checked jobs."""
    ints: list[int] = []
    scalars: list[float] = []
    for job in jobs:
        found = job.factors.address if isinstance(job.factors, FoundFactors) else 0
        assert job.weights is not None, "a checked job has weights"
        ints += array_pair(job.out)
        ints += arrays(job.tensors, job.base)
        ints += rules(job.keeps)
        ints += (VOTES.index(job.vote), DIVIDES.index(job.divide), job.offset, found)
        scalars += numbers(job.factors)
        scalars += job.weights
        scalars += (job.scale, job.divisor)
    return array("q", ints), array("f", scalars)


def selections(jobs: Sequence[SelectJob]) -> array[int]:
    """Return the integers of checked jobs: of each the tensors, then per tensor the number of ranks and the ranks."""
    ints: list[int] = []
    for job in jobs:
        ints += arrays(job.tensors, job.base)
        for ranks in job.ranks:
            ints.append(len(ranks))
            ints += ranks
    return array("q", ints)
