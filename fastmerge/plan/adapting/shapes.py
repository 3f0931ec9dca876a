"""Which tensors a change fits, by the shapes of what it is stored in."""

from __future__ import annotations

import math

from ...checkpoint import Change

__all__ = ["fitting_shape", "rotation_size"]

Shape = tuple[int, ...]

_DIMENSIONS = {
    "lora": (2, 2), "dora": (2, 2, 1), "adalora": (2, 2, 2), "vector": (1,), "loha": (2, 2, 2, 2), "ia3": (2,),
    "vera": (2, 2, 1, 1), "oft": (2,), "boft": (4, 2), "rows": (2,),
}  # fmt: skip


def fitting_shape(change: Change, shape: Shape) -> Shape | None:
    """Return the shape nearest to ``shape``, [out, in], that the change fits; None where its parts contradict."""
    shapes = [part.shape for part in change.parts]
    dimensions = _DIMENSIONS.get(change.kind, (2,) * len(shapes))
    if tuple(map(len, shapes)) != dimensions:
        return None
    columns = shape[1] if len(shape) == 2 else 0
    match change.kind:
        case "lora" | "adalora":
            return shapes[0][0], shapes[1][1]
        case "dora":
            return (shapes[0][0], shapes[1][1]) if shapes[2] == (shapes[0][0],) else None
        case "vector":
            return shapes[0]
        case "loha":
            one, two = _product(*shapes[:2]), _product(*shapes[2:])
            return one if one == two else None
        case "lokr":
            left, right = (_side(shapes, change.detail, side) for side in (0, 1))
            return None if left is None or right is None else (left[0] * right[0], left[1] * right[1])
        case "ia3":
            return _scaled(shapes[0], shape)
        case "vera":
            (most, rank), (also, widest), (rows,), (own,) = shapes
            fits = rank == also == own and rows <= most and columns <= widest
            return (rows, columns) if fits else None
        case "oft":
            size = rotation_size(shapes[0][1])
            shared = shapes[0][0] == 1 and size and columns % size == 0
            return (shape[0], columns if shared else shapes[0][0] * size) if size else None
        case "boft":
            _, blocks, size, _ = shapes[0]
            square = shapes[0][2] == shapes[0][3] and shapes[1][1] == 1
            return (shapes[1][0], blocks * size) if square else None
        case "rows":
            return (max(shape[0], 1 + int(max(change.detail, default=0))), shapes[0][1])
    raise AssertionError(change.kind)


def rotation_size(elements: int) -> int:
    """Return the size b of a skew-symmetric matrix with so many elements above its diagonal, b (b - 1) / 2; 0: none."""
    size = (1 + math.isqrt(1 + 8 * elements)) // 2
    return size if size * (size - 1) // 2 == elements else 0


def _product(left: Shape, right: Shape) -> Shape | None:
    return (left[0], right[1]) if left[1] == right[0] else None


def _side(shapes: list[Shape], counts: tuple[float, ...], side: int) -> Shape | None:
    """Return the shape of one side of a Kronecker product."""
    first = 0 if side == 0 else int(counts[0])
    own = shapes[first : first + int(counts[side])]
    return own[0] if len(own) == 1 else _product(*own)


def _scaled(vector: Shape, shape: Shape) -> Shape | None:
    if 1 not in vector:
        return None
    if len(shape) == 1:
        return (max(vector),)
    return (vector[0], shape[1]) if vector[1] == 1 and vector[0] > 1 else (shape[0], vector[1])
