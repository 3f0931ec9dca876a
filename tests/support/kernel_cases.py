"""Inputs for every operation of the registry, and the variants (backend, instruction set, threads) that must agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from fastmerge import kernels
from fastmerge.kernels import ALL_EQUAL, GRID, OPERATIONS, Boundary, _native

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (0, 1, 7, 8, 9, 31, 1023, 1024, 7 * 129, GRID - 1, GRID, GRID + 1, 100003)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Variant:
    """A way to run an operation. ``isa`` and ``threads`` are of the CPU extension."""

    backend: str
    isa: str = "auto"
    threads: int = 2

    @property
    def label(self) -> str:
        return f"{self.backend}-{self.isa}-{self.threads}" if self.backend == "cpu" else self.backend

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with kernels.use_backend(self.backend), extension_settings(self.isa, self.threads):
            yield


@contextlib.contextmanager
def extension_settings(isa: str, threads: int) -> Iterator[None]:
    """Set the instruction set and threads of the CPU extension, if it is there, for a while."""
    if _native.why_no_cpu_extension():
        yield
        return
    extension = _native.cpu_extension()
    before = extension.get_threads()
    extension.set_isa(isa)
    extension.set_threads(threads)
    try:
        yield
    finally:
        extension.set_isa("auto")
        extension.set_threads(before)


def variants() -> list[Variant]:
    """Every variant that runs here on CPU tensors, apart from the reference."""
    found = []
    names = {name for op in OPERATIONS.values() for name, impl in op.implementations.items() if impl.probe() is None}
    if "cpu" in names:
        isas = _native.cpu_extension().available_isas()
        found += [Variant("cpu", isa, threads) for isa, threads in zip(isas, (1, 2, 3), strict=False)]
        found.append(Variant("cpu", "auto", 3))
    return found


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, except that any NaN equals any other."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    a, b = (torch.where(t.isnan(), torch.full_like(t, float("nan")), t) for t in (a, b))
    return torch.equal(a.view(BITS[a.element_size()]), b.view(BITS[b.element_size()]))


def blank(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An output buffer full of NaN (or of -7), so that an element that is not written shows."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else -7, dtype=dtype)


def random_words(count: int, generator: torch.Generator) -> Tensor:
    """Random int32 words."""
    return torch.randint(-(2**31), 2**31, (count,), generator=generator, dtype=torch.int64).to(torch.int32)


@dataclass
class Inputs:
    """A base and N fine-tuned tensors of mixed dtypes, with everything that an operation may want of them."""

    random: Random
    generator: torch.Generator
    numel: int
    count: int

    def __post_init__(self) -> None:
        uniform = self.random.random() < 0.5
        first = self.random.choice(FLOATS)
        dtypes = [first if uniform else self.random.choice(FLOATS) for _ in range(self.count + 2)]
        self.out_dtype = dtypes.pop()
        values = 0.02 * self.randn()
        noise = self.random.choice([1e-4, 2e-3, 1.0])
        self.base = values.to(dtypes.pop())
        self.tensors = [(values + noise * self.randn()).to(dtype) for dtype in dtypes]
        if self.random.random() < 0.3 and self.numel > 30:
            self.add_specials()
        self.weights = [self.random.uniform(-1, 2) for _ in range(self.count)]
        self.offset = self.random.choice([0, GRID, 2**33 + GRID])

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape or (self.numel,), generator=self.generator)

    def add_specials(self) -> None:
        for tensor in [self.base, *self.tensors]:
            for value in (float("nan"), float("inf"), -float("inf"), -0.0, 1e-42, 6e-8):
                tensor[torch.randint(0, self.numel, (2,), generator=self.generator)] = value

    def boundary(self, k: int) -> Boundary:
        """A boundary in the middle of a tie or a gap of delta k, in global indices."""
        if self.numel == 0:
            return kernels.NOTHING
        rank = self.random.randint(0, self.numel)
        [[found]] = kernels.select_boundaries([self.tensors[k]], self.base, [[rank]], backend="reference")
        index = found.break_index
        return Boundary(found.threshold, index if index == ALL_EQUAL else index + self.offset)

    def keeps(self) -> list[kernels.Keep]:
        """One rule per model: all of one kind, or mixed."""
        # A mask is of the whole tensor, from its first element on.
        kinds = ("all", "top", "band", "random", *(["masked"] if self.offset <= GRID else []))
        same = self.random.choice([*kinds, None])
        return [self.keep(k, same or self.random.choice(kinds)) for k in range(self.count)]

    def keep(self, k: int, kind: str) -> kernels.Keep:
        if kind == "all":
            return kernels.keep_all()
        if kind == "top":
            return kernels.keep_top(self.boundary(k))
        if kind == "band":
            return kernels.keep_band(self.boundary(k), self.boundary(k))
        if kind == "masked":
            return kernels.keep_masked(random_words(kernels.mask_words(self.offset + self.numel), self.generator))
        drop = self.random.choice([0, 2**32, 2**31, 0xFFFF0001, self.random.getrandbits(32)])
        return kernels.keep_random(self.random.getrandbits(64), k, drop)


Run = Callable[[], object]


def weighted_sum(inputs: Inputs) -> Run:
    def run():
        out = blank(inputs.numel, dtype=inputs.out_dtype)
        kernels.weighted_sum(out, inputs.tensors, inputs.weights)
        return out

    return run


def sparse_merge(inputs: Inputs) -> Run:
    keeps, vote = inputs.keeps(), inputs.random.choice(["none", "weighted", "weighted", "sum", "count"])
    divide, scale = inputs.random.choice(["none", "weights", "count"]), inputs.random.choice([1.0, 0.7])

    def run():
        out = blank(inputs.numel, dtype=inputs.out_dtype)
        kernels.sparse_merge(
            out, inputs.base, inputs.tensors, factors=inputs.weights, keeps=keeps, vote=vote, divide=divide,
            scale=scale, offset=inputs.offset,
        )  # fmt: skip
        return out

    return run


def gram(inputs: Inputs) -> Run:
    base = inputs.random.choice([inputs.base, None])

    def run():
        partials = blank(-(-inputs.numel // GRID), len(kernels.pairs(inputs.count)), dtype=torch.float64)
        kernels.gram_partials(partials, inputs.tensors, base)
        return partials

    return run


def norms(inputs: Inputs) -> Run:
    base, keeps, power = inputs.random.choice([inputs.base, None]), inputs.keeps(), inputs.random.choice([1, 2])

    def run():
        partials = blank(-(-inputs.numel // GRID), 2 * inputs.count, dtype=torch.float64)
        kernels.norm_partials(partials, inputs.tensors, base, keeps, power=power, offset=inputs.offset)
        return partials

    return run


def select(inputs: Inputs) -> Run:
    base = inputs.random.choice([inputs.base, None])
    ranks = [[inputs.random.randint(0, inputs.numel) for _ in range(2)] for _ in range(inputs.count)]
    return lambda: kernels.select_boundaries(inputs.tensors, base, ranks)


def magnitude_histogram(inputs: Inputs) -> Run:
    base = inputs.random.choice([inputs.base, None])

    def run():
        counts = [torch.ones(inputs.count, bins, dtype=torch.int64) for bins in kernels.HISTOGRAM_BINS]
        kernels.magnitude_histogram(counts[0], inputs.tensors, base, 0)
        kernels.magnitude_histogram(counts[1], inputs.tensors, base, 1, counts[0].argmax(1).tolist())
        return torch.cat(counts, 1)

    return run


def equal_counts(inputs: Inputs) -> Run:
    thresholds = [inputs.boundary(k).threshold for k in range(inputs.count)]

    def run():
        counts = blank(inputs.count, -(-inputs.numel // GRID), dtype=torch.int64)
        kernels.equal_counts(counts, inputs.tensors, inputs.base, thresholds)
        return counts

    return run


def rank_mask(inputs: Inputs) -> Run:
    base, tensor, numel = inputs.random.choice([inputs.base, None]), inputs.tensors[0], inputs.numel
    outer = inputs.random.choice([d for d in (1, 3, 7, 31) if numel % d == 0])
    inner = inputs.random.choice([d for d in (1, 1, 2, 43) if numel // outer % d == 0])
    density, epsilon = inputs.random.choice([(0.5, 0.15), (0.3, 0.0), (0.5, 0.4999), (0.9, 0.05)])
    key, model = inputs.random.getrandbits(64), inputs.random.choice([0, 2**32 - 1])

    def run():
        mask = blank(kernels.mask_words(numel), dtype=torch.int32)
        rows = (outer, numel // outer // inner, inner)
        kernels.rank_mask(mask, tensor, base, rows=rows, density=density, epsilon=epsilon, key=key, model=model)
        return mask

    return run


def low_rank(inputs: Inputs) -> Run:
    columns = inputs.random.choice([1, 5, 64, 513, 700])
    rank, rows = inputs.random.randint(1, 9), min(inputs.numel // columns, 40)
    weight = inputs.tensors[0][: rows * columns].view(rows, columns)
    up, down = inputs.randn(rows, rank), inputs.randn(rank, columns)

    def run():
        out = blank(rows, columns, dtype=inputs.out_dtype)
        kernels.low_rank_update(out, weight, up, down, 0.37)
        return out

    return run


CASES: dict[str, Callable[[Inputs], Run]] = {
    "equal_counts": equal_counts,
    "gram": gram,
    "low_rank": low_rank,
    "magnitude_histogram": magnitude_histogram,
    "norms": norms,
    "rank_mask": rank_mask,
    "select": select,
    "sparse_merge": sparse_merge,
    "weighted_sum": weighted_sum,
}
