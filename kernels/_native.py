"""The compiled CPU extension ``fastmerge._C``: found on first use, and the reason when it is missing.

Below it stands how both compiled backends take arguments: as addresses, numbers and tuples of them (csrc/arguments.h).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from ._checks import code_of
from ._found import FoundFactors
from ._jobs import DIVIDES, VOTES, MergeJob, SelectJob, SumJob, numbers
from .keep import Keep

if TYPE_CHECKING:
    from torch import Tensor

# That of csrc/arguments.h.
INTERFACE = 9

ArrayTuple = tuple[int, int]
TensorsTuple = tuple[list[int], list[int], int, int, int]


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


def _code(tensor: Tensor) -> int:
    code = code_of(tensor.dtype)
    assert code is not None, "checks refuse other types"
    return code


def array(tensor: Tensor) -> ArrayTuple:
    """Return ``(address, dtype number)`` of a tensor."""
    return tensor.data_ptr(), _code(tensor)


def arrays(tensors: Sequence[Tensor], base: Tensor | None) -> TensorsTuple:
    """Return ``(addresses, dtype numbers, base address, base dtype number, elements)``; address 0 is no base."""
    base_address, base_code = (0, 0) if base is None else array(base)
    return (
        [t.data_ptr() for t in tensors],
        [_code(t) for t in tensors],
        base_address,
        base_code,
        tensors[0].numel(),
    )


def sum_tuple(job: SumJob) -> tuple:
    """Return a checked job as the extensions take it."""
    weights, found = _factors(job.weights)
    return array(job.out), arrays(job.tensors, None), weights, found


def keep_tuple(keep: Keep) -> tuple[int, ...]:
    """Return a rule as the extensions take it."""
    rows = (0 if row is None else row.address for row in (keep.inside, keep.outside))
    more = (keep.row, keep.stride) if keep.row else rows
    return *keep.integers(), *more, 0 if keep.drawn is None else keep.drawn.data_ptr()


def merge_tuple(job: MergeJob) -> tuple:
    """Return a checked job as the extensions take it."""
    rules = [keep_tuple(keep) for keep in job.keeps]
    factors, found = _factors(job.factors)
    how, scalars = (VOTES.index(job.vote), DIVIDES.index(job.divide)), (job.scale, job.divisor)
    return array(job.out), arrays(job.tensors, job.base), factors, job.weights, rules, how, scalars, job.offset, found


def _factors(factors: Sequence[float] | FoundFactors) -> tuple[Sequence[float], int]:
    """Return numbers, and the address of those that count in their place; 0 is none."""
    return numbers(factors), factors.address if isinstance(factors, FoundFactors) else 0


def select_tuple(job: SelectJob) -> tuple:
    """Return a job as the extensions take it."""
    return arrays(job.tensors, job.base), job.ranks
