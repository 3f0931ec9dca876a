"""What is timed on a GPU: the operations one by one, and the tensor shapes of a 70B model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmerge import kernels

# Every value of a call: a tensor, or what Python compares.
Call = Callable[[Sequence[Tensor], str], object]


@dataclass(frozen=True)
class Case:
    """One call of an operation.

    Attributes:
        name:    operation and variant, as the CSV names it.
        inputs:  tensors that it reads, the base first where it has one.
        passes:  how often it reads them.
        writes:  whether it writes a tensor of the same size.
        run:     takes the inputs and a backend; returns the result.
        compare: whether ``torch.compile`` of the reference is a contender.
    """

    name: str
    inputs: int
    passes: int
    writes: bool
    run: Call
    compare: bool = False

    def bytes_moved(self, tensor: Tensor, passes: int | None = None) -> int:
        """Bytes read and written by ``passes`` readings, by default all."""
        return tensor.nbytes * (self.inputs * (self.passes if passes is None else passes) + self.writes)


def _weighted_sum(tensors: Sequence[Tensor], backend: str) -> Tensor:
    out = torch.empty_like(tensors[0])
    kernels.weighted_sum(out, tensors, [1 / len(tensors)] * len(tensors), backend=backend)
    return out


def _gram(tensors: Sequence[Tensor], backend: str) -> Tensor:
    count = len(tensors) - 1
    partials = torch.empty(
        -(-tensors[0].numel() // kernels.GRID),
        len(kernels.pairs(count)),
        dtype=torch.float64,
        device=tensors[0].device,
    )
    kernels.gram_partials(partials, tensors[1:], tensors[0], backend=backend)
    return partials


def _norms(tensors: Sequence[Tensor], backend: str) -> Tensor:
    count = len(tensors) - 1
    partials = torch.empty(
        -(-tensors[0].numel() // kernels.GRID), 2 * count, dtype=torch.float64, device=tensors[0].device
    )
    keeps = [kernels.keep_random(1, k, 2**31) for k in range(count)]
    kernels.norm_partials(partials, tensors[1:], tensors[0], keeps, backend=backend)
    return partials


def _histogram(tensors: Sequence[Tensor], backend: str) -> Tensor:
    counts = torch.zeros(len(tensors) - 1, kernels.HISTOGRAM_BINS[0], dtype=torch.int64, device=tensors[0].device)
    kernels.magnitude_histogram(counts, tensors[1:], tensors[0], 0, backend=backend)
    return counts


def _select(tensors: Sequence[Tensor], backend: str) -> list:
    ranks = [[tensors[0].numel() // 2]] * (len(tensors) - 1)
    return kernels.select_boundaries(tensors[1:], tensors[0], ranks, backend=backend)


def _merge(rule: kernels.Keep, **values) -> Call:
    def run(tensors: Sequence[Tensor], backend: str) -> Tensor:
        base, *models = tensors
        out = torch.empty_like(base)
        count = len(models)
        kernels.sparse_merge(out, base, models, factors=[0.5] * count, keeps=[rule] * count, **values, backend=backend)
        return out

    return run


# About the median of the deltas of ``benchmarks.kernels.cases.make_tensors``.
_TOP = kernels.keep_top(kernels.Boundary(0x39B00000, 2**20))
_RANDOM = kernels.keep_random(1, 0, 2**31)
_TIES = {"vote": "weighted", "divide": "weights"}

OPERATIONS = (
    *(Case(f"weighted_sum of {n}", n, 1, True, _weighted_sum, compare=n == 4) for n in (1, 2, 4, 8, 16)),
    Case("gram of 3", 4, 1, False, _gram),
    Case("norms of 3, random", 4, 1, False, _norms),
    Case("magnitude_histogram of 3", 4, 1, False, _histogram),
    # Four digits and the break index.
    Case("select of 3", 4, 5, False, _select),
    *(Case(f"sparse_merge of {n}, top, elected", n + 1, 1, True, _merge(_TOP, **_TIES), n == 3) for n in (1, 3, 8)),
    Case("sparse_merge of 3, random", 4, 1, True, _merge(_RANDOM)),
    Case("sparse_merge of 3, random, elected", 4, 1, True, _merge(_RANDOM, **_TIES)),
)  # fmt: skip


def verify(case: Case, tensors: Sequence[Tensor], device: torch.device, backend: str) -> None:
    """Raise AssertionError unless ``backend`` on ``device`` gives the bits of the reference on the CPU."""
    inputs = list(tensors[: case.inputs])
    expected = case.run(inputs, "reference")
    result = case.run([tensor.to(device) for tensor in inputs], backend)
    same = torch.equal(result.cpu(), expected) if isinstance(expected, Tensor) else result == expected
    assert same, f"{case.name}: {backend} differs from the reference"


@dataclass(frozen=True)
class Llama:
    """Tensor shapes of a Llama model; the defaults are those of Llama-3-70B (723 tensors, 70.6e9 parameters)."""

    layers: int = 80
    hidden: int = 8192
    intermediate: int = 28672
    key_value: int = 1024
    vocabulary: int = 128256

    def sizes(self) -> Iterator[int]:
        """Yield the number of elements of every tensor."""
        yield from (self.vocabulary * self.hidden,) * 2
        yield self.hidden
        for _ in range(self.layers):
            yield from (self.hidden * self.hidden,) * 2
            yield from (self.key_value * self.hidden,) * 2
            yield from (self.intermediate * self.hidden,) * 3
            yield from (self.hidden,) * 2
