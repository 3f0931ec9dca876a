"""What folding keeps in memory beside the parts of an adapter, and what it takes meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from ...plan.types import Adapter

__all__ = ["STEP", "Shape", "kronecker_sides", "made_shapes", "scaled_shapes", "working_bytes"]

# Elements of a tensor that are changed at once, where that takes memory: it stays in the cache.
STEP = 1 << 16

Shape = tuple[int, ...]
T = TypeVar("T")


def made_shapes(adapter: Adapter) -> tuple[Shape, ...]:
    """Return the shapes of what ``Term.make`` makes once and keeps, float32."""
    shapes = [part.shape for part in adapter.parts]
    match adapter.kind:
        case "lora" | "dora":
            return (shapes[1][::-1], shapes[0][::-1]) if adapter.transposed else ()
        case "adalora" | "vera":
            up, down = scaled_shapes(adapter)
            return (down[::-1], up[::-1]) if adapter.transposed else (up, down)
        case "lokr":
            return tuple((own[0][0], own[-1][1]) for own in kronecker_sides(adapter, shapes))
        case "boft":
            return (shapes[0][1:],)
        case "oft":
            size = int(adapter.detail[2])
            return ((shapes[0][0], size, size),)
        case "experts":
            (rows, wide), (_, columns) = shapes
            count, expert = map(int, adapter.detail)
            rank = wide // count
            if expert >= 0:
                return ((rows, rank),)
            return ((count, columns, rank), (count, rank, rows)) if adapter.transposed else ((count, rows, rank),)
    return ()


def scaled_shapes(adapter: Adapter) -> tuple[Shape, Shape]:
    """Return what a module uses of its factors: of VeRA's, which all share, the first rows and columns."""
    up, down = adapter.parts[0].shape, adapter.parts[1].shape
    if adapter.kind == "vera":
        return (adapter.parts[2].shape[0], up[1]), (down[0], int(adapter.detail[0]))
    return up, down


def kronecker_sides(adapter: Adapter, parts: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Return what each of LoKr's two matrices is stored in: itself, or two factors."""
    count = int(adapter.detail[0])
    return parts[:count], parts[count:]


def working_bytes(adapter: Adapter, columns: int) -> int:
    """Return a bound of what ``Term.make`` and ``Term.add`` take beside their arguments, in each worker."""
    if adapter.kind in ("lora", "dora", "experts", "rows"):
        return 0
    made = 4 * sum(math.prod(shape) for shape in (*made_shapes(adapter), *(part.shape for part in adapter.parts)))
    return 16 * max(STEP, columns) + (6 if adapter.kind in ("oft", "boft") else 2) * made
