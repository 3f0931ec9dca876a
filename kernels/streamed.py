"""One weighted sum or sparse merge of what files hold: a cell of every input is read, summed and used in the cache.

Reading a whole chunk first, and then going over it for its checksums and again for the merge, moves it through memory
as often. The compiled backend of the processor does all of it cell by cell (csrc/cpu/streamed.cpp); there is no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from . import _native
from ._jobs import MergeJob, SumJob
from ._registry import permitted
from .sparse_merge import _checked as checked_merge
from .weighted_sum import _checked as checked_sum

if TYPE_CHECKING:
    import torch

__all__ = ["Stored", "can_stream", "streamed"]


class Stored(NamedTuple):
    """Where the elements of an input come from.

    Attributes:
        descriptor: of the open file that holds them; -1: they lie in memory.
        offset:     of the first byte in the file.
        finite:     its numbers have to be finite, if it is read.
    """

    descriptor: int = -1
    offset: int = 0
    finite: bool = False


def can_stream(device: torch.device) -> bool:
    """Return whether the backend that streams may run for tensors on a device."""
    return permitted("cpu", device) and _native.why_no_cpu_extension() is None


def streamed(job: SumJob | MergeJob, sources: Sequence[Stored], cell: int, finite: bool) -> list[bytes] | None:
    """Run a job on what its sources hold, the bits those of the job on tensors of it.

    Args:
        job:     strips; those of inputs that a file holds have memory for one cell.
        sources: one per input, the base first.
        cell:    elements that are read, and summed, at once.
        finite:  the results have to be finite.
    Returns:
        For every input that was read, and then for the output, the xxh3-64 of its cells, 8 bytes each; nothing for an
        input in memory. None where bytes could not be read, or numbers are not finite that have to be: the output is
        then not complete.
    Raises:
        ValueError: as the operation of the job does.
    """
    if isinstance(job, SumJob):
        arguments = _native.sums([checked_sum(job)[0]])
        return _native.cpu_extension().streamed_sum(*arguments, sources, cell, finite)
    arguments = _native.merges([checked_merge(job)[0]])
    return _native.cpu_extension().streamed_merge(*arguments, sources, cell, finite)
