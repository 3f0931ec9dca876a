"""CUDA hooks of ``select_boundaries``: work space, launches, and the one wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .. import _native
from .._download import download
from .._jobs import SelectJob
from .._sampling import DEVIATIONS, SPARE
from ..keep import Boundary
from . import extension, stream

if TYPE_CHECKING:
    from torch import Tensor

# Bytes of work space that jobs share; those of one job may take more.
WORKSPACE = 1 << 28

# How often a sample misled, by what happened; for tests.
misled: Counter[str] = Counter()
_STATUS = {1: "missed", 2: "overflowed"}


def launch(jobs: Sequence[SelectJob]) -> Tensor:
    """Launch selections and return where they write: a row (threshold, break index, status) for each rank, in turn."""
    import torch

    like = jobs[0].tensors[0]
    ranks = [len(wanted) for job in jobs for wanted in job.ranks]
    rows = torch.empty(sum(ranks), 3, dtype=torch.int64, device=like.device)
    settings = (DEVIATIONS, SPARE)
    done = 0
    for tuples, size in _groups([_native.select_tuple(job) for job in jobs], settings):
        # Freed at once: what is allocated next on this stream is used after these kernels.
        workspace = torch.empty(size, dtype=torch.uint8, device=like.device)
        extension().select(rows[done:].data_ptr(), workspace.data_ptr(), tuples, settings, stream(like))
        done += sum(len(wanted) for _, lists in tuples for wanted in lists)
    return rows


def start(jobs: Sequence[SelectJob]) -> Callable[[], list[list[list[Boundary | None]]]]:
    """Launch selections; the function that is returned waits for the boundaries, None where a sample misled."""
    wait = download(launch(jobs))

    def boundaries() -> list[list[list[Boundary | None]]]:
        found = iter(wait().tolist())
        return [[[_boundary(*next(found)) for _ in wanted] for wanted in job.ranks] for job in jobs]

    return boundaries


def _groups(tuples: list[tuple], settings: tuple[float, float]) -> list[tuple[list[tuple], int]]:
    """Return jobs that run together, and the bytes of work space that they need."""
    groups: list[tuple[list[tuple], int]] = []
    for job in tuples:
        size = extension().select_workspace([job], settings)
        if groups and groups[-1][1] + size <= WORKSPACE:
            together, before = groups.pop()
            groups.append(([*together, job], before + size))
        else:
            groups.append(([job], size))
    return groups


def _boundary(threshold: int, break_index: int, status: int) -> Boundary | None:
    if status:
        misled[_STATUS[status]] += 1
        return None
    return Boundary(threshold, break_index)
