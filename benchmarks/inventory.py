"""The operations with inputs: one inventory for the tests, the timings and the reports on compiled kernels.

``CALLS`` runs any operation in any variant; ``CASES`` are the variants that are timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastmerge import kernels
from fastmerge.kernels import Boundary, Keep


@dataclass
class Inputs:
    """What an operation may read and write.

    Attributes:
        out:     shaped like the tensors; what an operation does not fill it leaves alone.
        tensors: of the models.
        base:    None where they are taken as they are.
        offset:  global index of the first element, on the grid of the reductions.
        new:     makes a buffer for a result, from its shape, ``dtype`` and ``device``.
    """

    out: Tensor
    tensors: Sequence[Tensor]
    base: Tensor | None = None
    offset: int = 0
    new: Callable[..., Tensor] = torch.empty

    @property
    def numel(self) -> int:
        return self.out.numel()

    def table(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return self.new(rows, columns, dtype=dtype, device=self.out.device)


# Run an operation on inputs and return what it computed; ``backend`` pins one. Other arguments name the variant.
Call = Callable[..., object]

# About the median magnitude of the deltas of ``make_inputs``, as float32 bits.
MEDIAN = 0x39B00000
# Elements of a row of the matrices that are ranked by row.
ROW = 4096
RULES = ("all", "top", "band", "random", "masked")


def keep_rule(name: str, model: int, like: Tensor) -> Keep:
    """Return a rule that keeps about half of the deltas of ``make_inputs``."""
    if name == "masked":
        return kernels.keep_masked(_mask(like.numel(), like.device))
    return {
        "all": kernels.keep_all(),
        "top": kernels.keep_top(Boundary(MEDIAN, 2**20)),
        "band": kernels.keep_band(Boundary(MEDIAN, 2**20), Boundary(2 * MEDIAN - 0x39000000, 10)),
        "random": kernels.keep_random(1, model, 2**31),
        # Of 512 of the 4096 columns of a matrix.
        "columns": kernels.keep_on_rows(kernels.keep_random(1, model, 2**31), 1024, 512, 4096),
    }[name]


@functools.cache
def _mask(elements: int, device: torch.device) -> Tensor:
    """Return a mask that keeps half of the elements, the same on every device."""
    generator = torch.Generator().manual_seed(1)
    words = (kernels.mask_words(elements),)
    return torch.randint(-(2**31), 2**31, words, generator=generator).int().to(device)


def _rules(x: Inputs, keeps: str | Sequence[Keep]) -> Sequence[Keep]:
    return [keep_rule(keeps, k, x.out) for k in range(len(x.tensors))] if isinstance(keeps, str) else keeps


def weighted_sum(x: Inputs, backend: str | None = None, weights: Sequence[float] | None = None) -> Tensor:
    inputs = x.tensors if x.base is None else [x.base, *x.tensors]
    kernels.weighted_sum(x.out, inputs, weights or [1 / len(inputs)] * len(inputs), backend=backend)
    return x.out


def sparse_merge(
    x: Inputs, backend: str | None = None, keeps: str | Sequence[Keep] = "all", factors: Sequence[float] | None = None,
    **how: Any,
) -> Tensor:  # fmt: skip
    assert x.base is not None
    factors = factors or [0.5] * len(x.tensors)
    rest = {"factors": factors, "keeps": _rules(x, keeps), "offset": x.offset, **how}
    kernels.sparse_merge(x.out, x.base, x.tensors, **rest, backend=backend)
    return x.out


def gram(x: Inputs, backend: str | None = None) -> Tensor:
    partials = x.table(_chunks(x), len(kernels.pairs(len(x.tensors))), torch.float64)
    kernels.gram_partials(partials, x.tensors, x.base, backend=backend)
    return partials


def plain_gram(inputs: Sequence[Tensor]) -> Tensor:
    base, *models = inputs
    deltas = torch.stack([model.float() - base.float() for model in models]).double()
    return deltas @ deltas.mT


def norms(x: Inputs, backend: str | None = None, keeps: str | Sequence[Keep] = "random", power: int = 1) -> Tensor:
    partials = x.table(_chunks(x), 2 * len(x.tensors), torch.float64)
    kernels.norm_partials(
        partials, x.tensors, x.base, _rules(x, keeps), power=power, offset=x.offset, backend=backend
    )  # fmt: skip
    return partials


def select(x: Inputs, backend: str | None = None, ranks: Sequence[Sequence[int]] | None = None) -> list:
    ranks = ranks or [[x.numel // 2]] * len(x.tensors)
    return kernels.select_boundaries(x.tensors, x.base, ranks, backend=backend)


def magnitude_histogram(
    x: Inputs, backend: str | None = None, level: int = 0, prefixes: Sequence[int] = (), before: int = 0
) -> Tensor:
    counts = x.table(len(x.tensors), kernels.HISTOGRAM_BINS[level], torch.int64).fill_(before)
    kernels.magnitude_histogram(counts, x.tensors, x.base, level, prefixes, backend=backend)
    return counts


def equal_counts(x: Inputs, backend: str | None = None, thresholds: Sequence[int] | None = None) -> Tensor:
    counts = x.table(len(x.tensors), _chunks(x), torch.int64)
    kernels.equal_counts(counts, x.tensors, x.base, thresholds or [MEDIAN] * len(x.tensors), backend=backend)
    return counts


def rank_mask(
    x: Inputs, backend: str | None = None, rows: tuple[int, int, int] | None = None, density: float = 0.5,
    epsilon: float = 0.15, key: int = 1, first_model: int = 0,
) -> Tensor:  # fmt: skip
    masks = x.table(len(x.tensors), kernels.mask_words(x.numel), torch.int32)
    length = ROW if x.numel % ROW == 0 else x.numel
    rows = rows or (x.numel // max(1, length), length, 1)
    models = [kernels.Ranked(first_model + k, density, epsilon) for k in range(len(x.tensors))]
    kernels.rank_mask(list(masks), x.tensors, x.base, models, rows=rows, key=key, backend=backend)
    return masks


def low_rank(
    x: Inputs, backend: str | None = None, columns: int | None = None, factors: tuple[Tensor, Tensor] | None = None,
    scale: float = 0.5,
) -> Tensor:  # fmt: skip
    """Takes the first tensor as a matrix."""
    columns = columns or max(1, min(1024, x.numel))
    rows = x.numel // columns
    weight, out = (t.flatten()[: rows * columns].view(rows, columns) for t in (x.tensors[0], x.out))
    up, down = factors or _factors(rows, columns, 8, x.out.device)
    kernels.low_rank_update(out, weight, up, down, scale, backend=backend)
    return out


@functools.cache
def _factors(rows: int, columns: int, rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (rows, rank), (rank, columns)
    up, down = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    return up, down


def _chunks(x: Inputs) -> int:
    return -(-x.numel // kernels.GRID)


CALLS: dict[str, Call] = {
    "weighted_sum": weighted_sum,
    "sparse_merge": sparse_merge,
    "gram": gram,
    "norms": norms,
    "select": select,
    "rank_mask": rank_mask,
    "magnitude_histogram": magnitude_histogram,
    "equal_counts": equal_counts,
    "low_rank": low_rank,
}


@dataclass(frozen=True)
class Case:
    """One operation in one variant.

    Attributes:
        name:      as the CSV names it.
        operation: the registry's name, for what its backends can.
        how:       the arguments that make the variant.
        based:     whether it reads a base beside the models.
        writes:    whether it fills ``out``; otherwise its result is small.
        compared:  whether the reference on the same device, and ``torch.compile`` of it, are contenders.
        models:    how many it takes; None is any number.
        counts:    models it is timed with beside the usual numbers.
        plain:     from the inputs, the base first: what a user of PyTorch would write, with roundings of its own.
    """

    name: str
    operation: str
    how: Mapping[str, Any] = field(default_factory=dict)
    based: bool = True
    writes: bool = True
    compared: bool = False
    models: int | None = None
    counts: tuple[int, ...] = ()
    plain: Callable[[Sequence[Tensor]], Tensor] | None = None

    def run(self, out: Tensor, tensors: Sequence[Tensor], backend: str | None = None) -> object:
        """Run it on ``tensors``, the base first where it has one, and return the result."""
        base, models = (tensors[0], tensors[1:]) if self.based else (None, tensors)
        return CALLS[self.operation](Inputs(out, models, base), backend, **self.how)

    def bytes_once(self, inputs: Sequence[Tensor]) -> int:
        """Return the bytes with every input read once and the output written once."""
        return inputs[0].nbytes * (len(inputs) + self.writes)

    def backends(self, device: torch.device | str, names: Sequence[str]) -> list[str]:
        """Return those backends that have this operation there."""
        return [name for name in names if kernels.OPERATIONS[self.operation].can_run(device, name)]


_TIES = {"vote": "weighted", "divide": "weights"}

CASES = (
    Case("weighted_sum", "weighted_sum", based=False, compared=True),
    Case("sparse_merge, all", "sparse_merge"),
    Case("sparse_merge, top, elected", "sparse_merge", {"keeps": "top", **_TIES}, compared=True),
    Case("sparse_merge, random, elected", "sparse_merge", {"keeps": "random", **_TIES}),
    Case("sparse_merge, masked, elected", "sparse_merge", {"keeps": "masked", **_TIES}),
    Case("gram", "gram", writes=False, counts=(9, 12), plain=plain_gram),
    Case("norms, random", "norms", writes=False),
    Case("select", "select", writes=False, compared=True),
    Case("rank_mask", "rank_mask", writes=False),
    Case("magnitude_histogram", "magnitude_histogram", writes=False),
    Case("equal_counts", "equal_counts", writes=False),
    Case("low_rank", "low_rank", based=False, models=1),
)
BY_NAME = {case.name: case for case in CASES}


def make_inputs(
    based: bool, elements: int, models: int, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0,
    tuned: float = 5e-4,
) -> list[Tensor]:  # fmt: skip
    """Return a base N(0, 0.02) where there is one, and models that differ from it by N(0, ``tuned``)."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(size: float) -> Tensor:
        return torch.empty(elements, device=device).normal_(0, size, generator=generator)

    base = normal(0.02)
    tensors = [(base + normal(tuned)).to(dtype) for _ in range(models)]
    return [base.to(dtype), *tensors] if based else tensors


def verify(case: Case, inputs: Sequence[Tensor], device: torch.device | str, backends: Sequence[str]) -> None:
    """Raise AssertionError unless ``backends`` on ``device`` give the bits of the reference on the CPU."""
    there = [tensor.to(device) for tensor in inputs]
    # An operation may fill a part: nothing else may change.
    expected = case.run(torch.full_like(inputs[0], torch.nan), inputs, "reference")
    for backend in backends:
        found = case.run(torch.full_like(there[0], torch.nan), there, backend)
        same = torch.equal(found.cpu(), expected) if isinstance(found, Tensor) else found == expected
        assert same, (
            f"{case.name}: {backend} differs from the reference; {len(inputs)} inputs of {inputs[0].numel()} "
            f"{inputs[0].dtype}"
        )
