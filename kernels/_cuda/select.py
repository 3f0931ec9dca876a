"""CUDA hooks of ``select_boundaries``: work space, launches, and the one wait."""

from __future__ import annotations

import itertools
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
    count = sum([len(wanted) for job in jobs for wanted in job.ranks])
    rows = torch.empty(count, 3, dtype=torch.int64, device=like.device)
    ints, settings = _native.selections(jobs), (DEVIATIONS, SPARE, WORKSPACE)
    # Freed at once: what is allocated next on this stream is used after these kernels.
    workspace = torch.empty(extension().select_workspace(ints, settings), dtype=torch.uint8, device=like.device)
    extension().select(rows.data_ptr(), workspace.data_ptr(), ints, settings, stream(like))
    return rows


def start(jobs: Sequence[SelectJob]) -> Callable[[], list[list[list[Boundary | None]]]]:
    """Launch selections; the function that is returned waits for the boundaries, None where a sample misled."""
    wait = download(launch(jobs))

    def boundaries() -> list[list[list[Boundary | None]]]:
        thresholds, break_indices, statuses = wait().T.tolist()
        found: list[Boundary | None] = list(map(Boundary, thresholds, break_indices))
        if any(statuses):
            for i in filter(statuses.__getitem__, range(len(statuses))):
                misled[_STATUS[statuses[i]]] += 1
                found[i] = None
        each = iter(found)
        return [[list(itertools.islice(each, len(wanted))) for wanted in job.ranks] for job in jobs]

    return boundaries
