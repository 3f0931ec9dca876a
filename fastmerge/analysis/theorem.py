r"""Rank collapse on synthetic task vectors, after the theorem of Subspace Boosting (arXiv 2506.16506, version 2).

    D_t = C + E_t,   C of low rank, E_t independent noise        =>   || mean_t E_t ||_2 ~ ||E_t||_2 / sqrt(N)

Averaging N experts leaves what they have in common and shrinks what is each one's own, so the stable rank of the mean
falls to that of C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..kernels.spectral import stable_rank, top_singular

__all__ = ["Collapse", "rank_collapse"]


@dataclass(frozen=True)
class Collapse:
    """Attributes:
    counts:   N, the number of task vectors in the mean.
    noise:    spectral norm of what their own parts leave in the mean.
    ranks:    stable rank of the mean.
    common:   spectral norm of the common part.
    floor:    stable rank of the common part.
    exponent: of the noise as a power of N, fitted by least squares to the logarithms; the theorem says -1/2.
    """

    counts: tuple[int, ...]
    noise: tuple[float, ...]
    ranks: tuple[float, ...]
    common: float
    floor: float
    exponent: float


def rank_collapse(
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32, 64), *, size: int = 256, rank: int = 4, own: float = 2.0, seed: int = 0
) -> Collapse:
    """Average growing numbers of task vectors [size, size] with a common part of rank ``rank``.

    Args:
        counts: rising numbers of task vectors.
        size:   rows and columns.
        rank:   of the common part.
        own:    Frobenius norm of a task's own part, as a multiple of that of the common part.
        seed:   of the random parts.
    """
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(size, rank, generator=generator) @ torch.randn(rank, size, generator=generator)
    common /= common.norm()
    total = torch.zeros(size, size)
    noise, ranks = [], []
    for task in range(1, max(counts) + 1):
        total += torch.randn(size, size, generator=generator) * (own / size)
        if task in counts:
            noise.append(_spectral_norm(total / task))
            ranks.append(float(stable_rank(common + total / task)))
    return Collapse(
        tuple(counts), tuple(noise), tuple(ranks), _spectral_norm(common), float(stable_rank(common)),
        _slope([math.log(count) for count in counts], [math.log(value) for value in noise]),
    )  # fmt: skip


def _spectral_norm(x: torch.Tensor) -> float:
    return float(top_singular(x, 1)[1])


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least-squares line."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)
