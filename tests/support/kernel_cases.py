"""Random inputs for every operation of the inventory, and the variants (backend, instruction set, threads) that must
agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from benchmarks.inventory import CALLS, Inputs
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


def blank(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """An output buffer full of NaN (or of -7), so that an element that is not written shows."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else -7, dtype=dtype, device=device)


def random_words(count: int, generator: torch.Generator) -> Tensor:
    """Random int32 words."""
    return torch.randint(-(2**31), 2**31, (count,), generator=generator, dtype=torch.int64).to(torch.int32)


@dataclass
class Draw:
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

    def call(self, name: str, based: bool | None = None, **how: Any) -> Run:
        """Return a call of an operation into new buffers, with its base, without, or by chance."""
        base = self.base if (self.random.random() < 0.5 if based is None else based) else None

        def run() -> object:
            out = blank(self.numel, dtype=self.out_dtype)
            return CALLS[name](Inputs(out, self.tensors, base, self.offset, blank), **how)

        return run


Run = Callable[[], object]


def weighted_sum(draw: Draw) -> Run:
    return draw.call("weighted_sum", based=False, weights=draw.weights)


def sparse_merge(draw: Draw) -> Run:
    how = {
        "vote": draw.random.choice(["none", "weighted", "weighted", "sum", "count"]),
        "divide": draw.random.choice(["none", "weights", "count"]), "scale": draw.random.choice([1.0, 0.7]),
    }  # fmt: skip
    return draw.call("sparse_merge", based=True, keeps=draw.keeps(), factors=draw.weights, **how)


def gram(draw: Draw) -> Run:
    return draw.call("gram")


def norms(draw: Draw) -> Run:
    return draw.call("norms", keeps=draw.keeps(), power=draw.random.choice([1, 2]))


def select(draw: Draw) -> Run:
    return draw.call("select", ranks=[[draw.random.randint(0, draw.numel) for _ in range(2)] for _ in draw.tensors])


def magnitude_histogram(draw: Draw) -> Run:
    based = draw.random.random() < 0.5
    high = draw.call("magnitude_histogram", based, before=1)

    def run() -> Tensor:
        counts = high()
        assert isinstance(counts, Tensor)
        low = draw.call("magnitude_histogram", based, level=1, prefixes=counts.argmax(1).tolist(), before=2)()
        return torch.cat([counts, low], 1)

    return run


def equal_counts(draw: Draw) -> Run:
    return draw.call("equal_counts", based=True, thresholds=[draw.boundary(k).threshold for k in range(draw.count)])


def rank_mask(draw: Draw) -> Run:
    numel = draw.numel
    outer = draw.random.choice([d for d in (1, 3, 7, 31) if numel % d == 0])
    inner = draw.random.choice([d for d in (1, 1, 2, 43) if numel // outer % d == 0])
    density, epsilon = draw.random.choice([(0.5, 0.15), (0.3, 0.0), (0.5, 0.4999), (0.9, 0.05)])
    return draw.call(
        "rank_mask", rows=(outer, numel // outer // inner, inner), density=density, epsilon=epsilon,
        key=draw.random.getrandbits(64), first_model=draw.random.choice([0, 2**32 - draw.count]),
    )  # fmt: skip


def low_rank(draw: Draw) -> Run:
    columns = draw.random.choice([1, 5, 64, 513, 700])
    draw.numel = min(draw.numel // columns, 40) * columns
    draw.tensors = [draw.tensors[0][: draw.numel]]
    rank = draw.random.randint(1, 9)
    factors = draw.randn(draw.numel // columns, rank), draw.randn(rank, columns)
    return draw.call("low_rank", based=False, columns=columns, factors=factors, scale=0.37)


CASES: dict[str, Callable[[Draw], Run]] = {
    function.__name__: function
    for function in (
        equal_counts, gram, low_rank, magnitude_histogram, norms, rank_mask, select, sparse_merge, weighted_sum,
    )
}  # fmt: skip
