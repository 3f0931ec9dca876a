r"""Exact k-th magnitude of deltas: the boundary that keeps exactly k elements, without a sort.

The order is that of ``keep``: magnitude of ``tensors[k] - base`` (one float32 subtraction), largest
first; equal magnitudes by global index, lowest first. Exact for every input and identical on every
backend. A tensor that comes in chunks, or lies on several devices, is selected from the tables of ``histogram``.

Extra memory per rank that is asked for: on the CPU at most n / 4 bytes + 2 MiB, and 32 bytes per 16384 elements; on a
GPU at most 0.26 n bytes + 128 KiB. Many jobs on a GPU take turns in 256 MiB, or in what the largest of them needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from . import _cuda, _native, _triton
from ._checks import GRID, check_group, checked_jobs, grid_chunks
from ._cuda import select as _cuda_select
from ._found import FoundBoundary
from ._jobs import SelectJob
from ._registry import Order, operation
from .histogram import HISTOGRAM_BINS, descend, equal_counts, magnitude_histogram, nth_equal
from .keep import ALL_EQUAL, EVERYTHING, NOTHING, Boundary, magnitude_bits
from .strip import on_host

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "SelectJob",
    "Selection",
    "found_boundaries",
    "select_boundaries",
    "select_boundaries_many",
    "start_selection",
]


class _Checked(NamedTuple):
    """A job, its ranks that need a search (all but 0 and n) in their order, and whether these are all as they came."""

    job: SelectJob
    inner: Sequence[Sequence[int]]
    plain: bool


class Selection:
    """Selections that were started. A GPU works on while the host does something else."""

    def __init__(self, jobs: Sequence[_Checked], backend: str | None):
        self._jobs = jobs
        self._found: Callable[[], list[list[list[Boundary | None]]]] = list
        if searched := _searched(jobs):
            self._backend, _ = _select.choose(searched[0].tensors[0].device, backend)
            together = None if self._backend == "reference" else _select.implementations[self._backend].many
            if together is not None:
                self._found = together(searched)
            else:
                found = [_select(job, backend=self._backend) for job in searched]
                self._found = lambda: found

    def result(self) -> list[list[list[Boundary]]]:
        """Wait, and return per job what ``select_boundaries`` returns."""
        found = iter(self._found())
        result = []
        for job, inner, plain in self._jobs:
            of_job: Sequence[Sequence[Boundary | None]] = next(found) if any(inner) else [[] for _ in inner]
            if plain and all(map(all, of_job)):  # no boundary is false, but None is
                result.append(cast("list[list[Boundary]]", of_job))
            else:
                result.append(
                    [self._of_tensor(job, *each) for each in zip(range(len(inner)), inner, of_job, strict=True)]
                )
        return result

    def _of_tensor(
        self, job: SelectJob, k: int, inner: Sequence[int], found: Sequence[Boundary | None]
    ) -> list[Boundary]:
        tensor = job.tensors[k]
        known: dict[int, Boundary] = {0: NOTHING, tensor.numel(): EVERYTHING}
        for rank, boundary in zip(inner, found, strict=True):
            # A sample that misled is no answer, and rare.
            known[rank] = boundary or _by_histograms(tensor, job.base, rank, self._backend)
        return [known[rank] for rank in job.ranks[k]]


def _searched(jobs: Sequence[_Checked]) -> list[SelectJob]:
    """Return the jobs that need a search, with the ranks that do."""
    return [job if plain else SelectJob(job.tensors, job.base, inner) for job, inner, plain in jobs if any(inner)]


def select_boundaries(
    tensors: Sequence[Tensor], base: Tensor | None, ranks: Sequence[Sequence[int]], *, backend: str | None = None
) -> list[list[Boundary]]:
    """Return, per tensor and rank, the boundary that keeps exactly ``rank`` elements.

    Args:
        tensors: N whole tensors of n elements (any float dtype), on one device.
        base:    shaped like them; None ranks the tensors themselves.
        ranks:   per tensor, the numbers of elements to keep, 0 <= rank <= n.
        backend: pin a backend; by default the fastest available on the device.
    Returns:
        per tensor, one ``Boundary`` per rank; break indices count from the first element of the tensors.
    Raises:
        ValueError: shapes disagree, or a rank lies outside 0 .. n.
    """
    job, _ = _checked(SelectJob(tensors, base, ranks))
    [found] = Selection([job], backend).result()
    return found


def select_boundaries_many(jobs: Sequence[SelectJob], *, backend: str | None = None) -> list[list[list[Boundary]]]:
    """Return what ``select_boundaries`` returns for each of ``jobs``; on a GPU with few launches and one wait.

    Args:
        jobs:    on one device.
        backend: pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: as ``select_boundaries``, naming the job.
    """
    return start_selection(jobs, backend=backend).result()


def start_selection(jobs: Sequence[SelectJob], *, backend: str | None = None) -> Selection:
    """Start ``select_boundaries_many`` and return without waiting for a GPU; ``result()`` of what it returns waits.

    The tensors must stay as they are until then.
    """
    return Selection(checked_jobs(jobs, _checked), backend)


def found_boundaries(jobs: Sequence[SelectJob]) -> list[list[list[Boundary | FoundBoundary]]]:
    """Start the selections of whole tensors on a GPU where ``answers_stay``, and return where the boundaries will be.

    Those of ranks 0 and n are known. Where a sample misled, the boundary is not found: ``answers.all_found`` tells.
    """
    checked = checked_jobs(jobs, _checked)
    searched = _searched(checked)
    rows = _cuda_select.launch(searched) if searched else None
    result, place = [], 0
    for job, inner, _ in checked:
        numel, found = job.tensors[0].numel(), []
        for wanted, searched_ranks in zip(job.ranks, inner, strict=True):
            known: dict[int, Boundary | FoundBoundary] = {0: NOTHING, numel: EVERYTHING}
            for rank in searched_ranks:
                assert rows is not None
                known[rank] = FoundBoundary(rows, place)
                place += 1
            found.append([known[rank] for rank in wanted])
        result.append(found)
    return result


def _checked(job: SelectJob) -> tuple[_Checked, torch.device]:
    tensors, base, ranks = job
    device = check_group(tensors, base)
    if len(ranks) != len(tensors):
        raise ValueError(f"ranks has {len(ranks)} entries; expected {len(tensors)}, one list per tensor")
    numel = tensors[0].numel()
    plain = True
    for i, wanted in enumerate(ranks):
        for rank in wanted:
            if not 0 < rank < numel:
                if rank not in (0, numel):
                    expected = f"expected 0 <= rank <= {numel}"
                    raise ValueError(f"ranks[{i}] asks for {rank} of {numel} elements; {expected}")
                plain = False
        plain = plain and (len(wanted) < 2 or list(wanted) == sorted(set(wanted)))
    if plain:
        return _Checked(job, ranks, True), device
    inner = [sorted({rank for rank in wanted if 0 < rank < numel}) for wanted in ranks]
    return _Checked(job, inner, False), device


def _by_histograms(tensor: Tensor, base: Tensor | None, rank: int, backend: str) -> Boundary:
    """Return the boundary of a rank, in two or three readings."""
    import torch

    threshold = equal = 0
    for level, bins in enumerate(HISTOGRAM_BINS):
        counts = torch.zeros(1, bins, dtype=torch.int64, device=tensor.device)
        magnitude_histogram(counts, [tensor], base, level, [threshold] if level else [], backend=backend)
        place, rank, equal = descend(on_host(counts)[0, ::-1], rank)
        threshold = (threshold << 16) | (bins - 1 - place)
    if rank == equal:
        return Boundary(threshold, ALL_EQUAL)
    counts = torch.empty(1, grid_chunks(tensor.numel()), dtype=torch.int64, device=tensor.device)
    equal_counts(counts, [tensor], base, [threshold], backend=backend)
    chunk, rank, _ = descend(on_host(counts)[0], rank)
    return Boundary(threshold, nth_equal(tensor, base, threshold, rank, chunk * GRID, GRID) + 1)


@operation("select", gpu=Order(("cuda", "triton"), "2.9 to 27 times as fast as Triton on an H200"))
def _select(job: SelectJob) -> Sequence[Sequence[Boundary | None]]:
    """Return boundaries; None where the backend did not find one, and leaves it to the histograms."""
    import torch

    result = []
    for tensor, wanted in zip(job.tensors, job.ranks, strict=True):
        delta = tensor.float() if job.base is None else tensor.float() - job.base.float()
        bits = magnitude_bits(delta.flatten())
        ordered, index = torch.sort(bits, descending=True, stable=True)
        result.append([_boundary(ordered, index, rank) for rank in wanted])
    return result


def _boundary(ordered: Tensor, index: Tensor, rank: int) -> Boundary:
    """Return the cut after ``rank`` elements of the sorted magnitudes, 0 < rank < n."""
    threshold = int(ordered[rank - 1])
    if int(ordered[rank]) != threshold:
        return Boundary(threshold, ALL_EQUAL)
    return Boundary(threshold, int(index[rank - 1]) + 1)


def _start_cpu(jobs: Sequence[SelectJob]) -> Callable[[], list[list[list[Boundary | None]]]]:
    found = iter(_native.cpu_extension().select(_native.selections(jobs)))
    boundaries: list[list[list[Boundary | None]]] = [
        [[Boundary(*next(found)) for _ in wanted] for wanted in job.ranks] for job in jobs
    ]
    return lambda: boundaries


@_select.backend("cpu", probe=_native.why_no_cpu_extension, many=_start_cpu)
def _run_cpu(job: SelectJob) -> list[list[Boundary | None]]:
    [found] = _start_cpu([job])()
    return found


@_select.backend("triton", probe=_triton.why_unavailable)
def _run_triton(job: SelectJob) -> list[list[Boundary | None]]:
    from ._triton.select import select as run

    return run(job.tensors, job.base, job.ranks)


@_select.backend("cuda", probe=_cuda.why_unavailable, many=_cuda_select.start)
def _run_cuda(job: SelectJob) -> list[list[Boundary | None]]:
    [found] = _cuda_select.start([job])()
    return found
