"""Argument checks and numerical surroundings shared by the spectral operations."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

# Adds up parts of a sum over ranks, in place.
Total = Callable[[Tensor], Tensor]


def alone(part: Tensor) -> Tensor:
    """The ``Total`` of one that has everything."""
    return part


def check_matrices(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> list[float]:
    """Refuse what is not a finite [..., m, n] float32 tensor; return the largest magnitude in each matrix."""
    if x.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(
            f"{name} has dtype {x.dtype}; expected {expected} (rounding a delta moves its small singular values)"
        )
    if x.dim() < 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected [..., m, n]")
    if not x.numel():
        return [0.0] * math.prod(x.shape[:-2])
    # One reading, and one wait.
    largest: list[float] = torch.linalg.vector_norm(x, torch.inf, dim=(-2, -1)).flatten().tolist()
    if not all(map(math.isfinite, largest)):
        raise ValueError(f"{name} has elements that are NaN or infinite; expected finite values")
    return largest


def check_tasks(deltas: Sequence[Tensor]) -> None:
    """Refuse what is not one or more finite [..., m, n] float32 tensors of one shape."""
    if not len(deltas):
        raise ValueError("deltas is empty; expected at least one tensor")
    for index, delta in enumerate(deltas):
        check_matrices(f"deltas[{index}]", delta)
        if delta.shape != deltas[0].shape:
            raise ValueError(f"deltas[{index}] has shape {tuple(delta.shape)}, deltas[0] has {tuple(deltas[0].shape)}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Keep float32 matrix products in float32 inside the block: TF32 costs three digits times the condition number."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def frobenius(x: Tensor) -> Tensor:
    """Frobenius norm of each matrix of [..., m, n], accumulated in float64."""
    return torch.linalg.vector_norm(x, dim=(-2, -1), dtype=torch.float64)
