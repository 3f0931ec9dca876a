"""What is timed on a GPU: the sizes, models and dtypes of operations and methods, and the shapes of a 70B model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fastmerge import kernels

from .._bench import backends_on
from ..inventory import Case, make_inputs, verify

# Elements of a tensor that a method merges; mergekit takes part in the first size.
SIZES = (64 << 20, 256 << 20)

# The main point of an operation, and what it is varied by.
MAIN, MODELS = 64 << 20, 3
ELEMENTS = (1 << 20, 16 << 20, 256 << 20)
COUNTS = (1, 2, 4, 8, 16)
DTYPES = (torch.float16, torch.float32)
CHECK_ELEMENTS = 301

# Several chunks of the reduction grid, with and without an odd end.
VERIFY_ELEMENTS = (8 * kernels.GRID + 12345, 8 * kernels.GRID)

Point = tuple[int, int, torch.dtype]


def sweep(case: Case, check: bool = False) -> Iterator[Point]:
    """Yield elements, models and dtype: one main point, and from there along each axis."""
    main, models = CHECK_ELEMENTS if check else MAIN, case.models or MODELS
    yield main, models, torch.bfloat16
    if check:
        return
    yield from ((elements, models, torch.bfloat16) for elements in ELEMENTS)
    yield from ((main, count, torch.bfloat16) for count in sorted({*COUNTS, *case.counts}) if case.models is None)
    yield from ((main, models, dtype) for dtype in DTYPES)


def verified(
    device: torch.device, case: Case, point: Point, check: bool = False, **width: float
) -> list[str]:  # fmt: skip
    """Return the backends that have this operation; AssertionError if one has other bits than the reference."""
    backends = case.backends(device, backends_on(device, check))
    verify(case, make_inputs(case.based, *point, seed=1, **width), device, backends)
    return backends


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
