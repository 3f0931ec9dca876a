"""What is timed on a GPU: the operations one by one, the tensors that they get, and the shapes of a 70B model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmerge import kernels

# What a call returns: None, or what it computed beside ``out``.
Call = Callable[[Tensor, Sequence[Tensor], str], object]


@dataclass(frozen=True)
class Case:
    """One operation in one variant.

    Attributes:
        name:      as the CSV names it.
        operation: the registry's name, for what its backends can.
        run:       takes ``out``, the inputs (the base first where it has one) and a backend.
        based:     whether it reads a base beside the models.
        writes:    whether it fills ``out``, a tensor like the inputs; otherwise it returns its result.
        compared:  whether the reference on the same device, and ``torch.compile`` of it, are contenders.
    """

    name: str
    operation: str
    run: Call
    based: bool = True
    writes: bool = True
    compared: bool = True

    def bytes_once(self, inputs: Sequence[Tensor]) -> int:
        """Return the bytes with every input read once and the output written once."""
        return inputs[0].nbytes * (len(inputs) + self.writes)

    def can_run(self, device: torch.device, backend: str) -> bool:
        """Return whether a backend has this operation there."""
        try:
            kernels.OPERATIONS[self.operation].choose(device, backend)
        except kernels.BackendError:
            return False
        return True


def _weighted_sum(out: Tensor, tensors: Sequence[Tensor], backend: str) -> None:
    kernels.weighted_sum(out, tensors, [1 / len(tensors)] * len(tensors), backend=backend)


def _table(like: Tensor, columns: int) -> Tensor:
    return torch.empty(-(-like.numel() // kernels.GRID), columns, dtype=torch.float64, device=like.device)


def _gram(out: Tensor, tensors: Sequence[Tensor], backend: str) -> Tensor:
    partials = _table(out, len(kernels.pairs(len(tensors) - 1)))
    kernels.gram_partials(partials, tensors[1:], tensors[0], backend=backend)
    return partials


def _norms(out: Tensor, tensors: Sequence[Tensor], backend: str) -> Tensor:
    count = len(tensors) - 1
    partials = _table(out, 2 * count)
    keeps = [kernels.keep_random(1, k, 2**31) for k in range(count)]
    kernels.norm_partials(partials, tensors[1:], tensors[0], keeps, backend=backend)
    return partials


def _histogram(out: Tensor, tensors: Sequence[Tensor], backend: str) -> Tensor:
    counts = torch.zeros(len(tensors) - 1, kernels.HISTOGRAM_BINS[0], dtype=torch.int64, device=out.device)
    kernels.magnitude_histogram(counts, tensors[1:], tensors[0], 0, backend=backend)
    return counts


def _equal_counts(out: Tensor, tensors: Sequence[Tensor], backend: str) -> Tensor:
    count = len(tensors) - 1
    counts = torch.empty(count, -(-out.numel() // kernels.GRID), dtype=torch.int64, device=out.device)
    kernels.equal_counts(counts, tensors[1:], tensors[0], [_MEDIAN] * count, backend=backend)
    return counts


def _select(out: Tensor, tensors: Sequence[Tensor], backend: str) -> list:
    ranks = [[out.numel() // 2]] * (len(tensors) - 1)
    return kernels.select_boundaries(tensors[1:], tensors[0], ranks, backend=backend)


def _rank_masks(out: Tensor, tensors: Sequence[Tensor], backend: str) -> Tensor:
    base, *models = tensors
    masks = torch.empty(len(models), kernels.mask_words(out.numel()), dtype=torch.int32, device=out.device)
    length = ROW if out.numel() % ROW == 0 else out.numel()
    for k, (mask, tensor) in enumerate(zip(masks, models, strict=True)):
        kernels.rank_mask(
            mask, tensor, base, rows=(out.numel() // length, length, 1), density=0.5, epsilon=0.15, key=1, model=k,
            backend=backend,
        )  # fmt: skip
    return masks


def _merge(rule: str, **values) -> Call:
    def run(out: Tensor, tensors: Sequence[Tensor], backend: str) -> None:
        base, *models = tensors
        count = len(models)
        keeps = [_rule(rule, k, out) for k in range(count)]
        kernels.sparse_merge(out, base, models, factors=[0.5] * count, keeps=keeps, **values, backend=backend)

    return run


# About the median magnitude of the deltas of ``make_inputs``, as float32 bits.
_MEDIAN = 0x39B00000


def _rule(name: str, model: int, like: Tensor) -> kernels.Keep:
    if name == "random":
        return kernels.keep_random(1, model, 2**31)
    if name == "masked":
        return kernels.keep_masked(_mask(like.numel(), like.device))
    return kernels.keep_top(kernels.Boundary(_MEDIAN, 2**20)) if name == "top" else kernels.keep_all()


@functools.cache
def _mask(elements: int, device: torch.device) -> Tensor:
    """Return a mask that keeps half of the elements, the same on every device."""
    generator = torch.Generator().manual_seed(1)
    words = (kernels.mask_words(elements),)
    return torch.randint(-(2**31), 2**31, words, generator=generator).int().to(device)


# Elements of a row of the matrices that are ranked by row.
ROW = 4096

_TIES = {"vote": "weighted", "divide": "weights"}

OPERATIONS = (
    Case("weighted_sum", "weighted_sum", _weighted_sum, based=False),
    Case("sparse_merge, all", "sparse_merge", _merge("all"), compared=False),
    Case("sparse_merge, top, elected", "sparse_merge", _merge("top", **_TIES)),
    Case("sparse_merge, random, elected", "sparse_merge", _merge("random", **_TIES), compared=False),
    Case("sparse_merge, masked, elected", "sparse_merge", _merge("masked", **_TIES), compared=False),
    Case("gram", "gram", _gram, writes=False, compared=False),
    Case("norms, random", "norms", _norms, writes=False, compared=False),
    # Triton: four digits and the break index. CUDA: about one reading.
    Case("select", "select", _select, writes=False),
    Case("rank_mask", "rank_mask", _rank_masks, writes=False, compared=False),
    Case("magnitude_histogram", "magnitude_histogram", _histogram, writes=False, compared=False),
    Case("equal_counts", "equal_counts", _equal_counts, writes=False, compared=False),
)

# Any that reads a base.
BASED = OPERATIONS[1]
SELECT = next(case for case in OPERATIONS if case.name == "select")


def make_inputs(
    case: Case, elements: int, models: int, dtype: torch.dtype, device: torch.device, seed: int, tuned: float = 5e-4
) -> list[Tensor]:
    """Return the inputs of ``case``: a base N(0, 0.02) where it has one, models that differ by N(0, ``tuned``)."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(size: float) -> Tensor:
        return torch.empty(elements, device=device).normal_(0, size, generator=generator)

    base = normal(0.02)
    tensors = [(base + normal(tuned)).to(dtype) for _ in range(models)]
    return [base.to(dtype), *tensors] if case.based else tensors


def verify(case: Case, inputs: Sequence[Tensor], device: torch.device, backends: Sequence[str]) -> None:
    """Raise AssertionError unless ``backends`` on ``device`` give the bits of the reference on the CPU."""
    facts = f"{len(inputs)} inputs of {inputs[0].numel()} {inputs[0].dtype}"
    there = [tensor.to(device) for tensor in inputs]
    expected = torch.full_like(inputs[0], torch.nan)
    reference = case.run(expected, inputs, "reference")
    for backend in backends:
        out = torch.full_like(there[0], torch.nan)
        result = case.run(out, there, backend)
        if case.writes:
            same = torch.equal(out.cpu(), expected)
        else:
            same = torch.equal(result.cpu(), reference) if isinstance(reference, Tensor) else result == reference
        assert same, f"{case.name}: {backend} differs from the reference; {facts}"


@dataclass(frozen=True)
class Llama:
    """Tensor shapes of a Llama model; the defaults are those of Llama-3-70B (723 tensors, 70.6e9 parameters)."""

    layers: int = 80
    hidden: int = 8192
    intermediate: int = 28672
    key_value: int = 1024
    vocabulary: int = 128256

    def shapes(self) -> Iterator[tuple[int, ...]]:
        """Yield the shape of every tensor."""
        for _ in range(self.layers):
            yield from ((self.hidden, self.hidden),) * 2
            yield from ((self.key_value, self.hidden),) * 2
            yield from ((self.intermediate, self.hidden),) * 2
            yield self.hidden, self.intermediate
            yield from ((self.hidden,),) * 2
        yield (self.hidden,)
        yield from ((self.vocabulary, self.hidden),) * 2


# Small enough to merge on the processor as well, for comparison.
SMALL = Llama(layers=2, hidden=512, intermediate=1536, key_value=128, vocabulary=3001)
TINY = Llama(layers=1, hidden=8, intermediate=16, key_value=8, vocabulary=8)
