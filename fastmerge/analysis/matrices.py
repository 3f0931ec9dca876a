"""Spectra of whole deltas: leading values, stable ranks as models are added, shared and own directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.reading import DeltaReader
from ..kernels.spectral import Leading, higher_order_gsvd, leading_values, spectrum, top_singular
from .family import Matched

__all__ = [
    "LEADING",
    "Directions",
    "Ranks",
    "Spectra",
    "boosted_values",
    "directions",
    "directions_bytes",
    "ranks",
    "ranks_bytes",
    "spectra",
    "spectra_bytes",
]


# Leading singular values that are kept of every delta.
LEADING = 8
# Up to this shorter side, the matrices that are shown are decomposed in full in any case; beyond, so many values shown.
WHOLE, SHOWN = 1024, 64


@dataclass(frozen=True)
class Ranks:
    """Leading singular values of one matrix.

    Attributes:
        leading:  of each model's delta, ``LEADING`` values at most, falling.
        models:   stable rank of each model's delta, squared Frobenius norm over s_0^2; 0 of a delta that is zero.
        means:    stable rank of the mean of the first 1, 2, ... N deltas.
        residual: the largest ||X^T u - s v|| of a leading triplet, over its value; 0 of full decompositions.
        missed:   a stable rank is too large by this share at most, but for one in a thousand
                  (``kernels.spectral.leading``); 0 of full decompositions.
    """

    leading: list[list[float]]
    models: list[float]
    means: list[float]
    residual: float
    missed: float


@dataclass(frozen=True)
class Spectra:
    """Singular values of one matrix, falling, float64.

    Attributes:
        name:    of the tensor.
        models:  of each model's delta.
        merged:  of the mean of the deltas.
        boosted: of the mean after Subspace Boosting; empty where the other lists hold the leading values alone.
    """

    name: str
    models: tuple[Tensor, ...]
    merged: Tensor
    boosted: Tensor


@dataclass(frozen=True)
class Directions:
    """How the models share the directions of one matrix (``kernels.spectral.higher_order_gsvd``).

    Attributes:
        name:    of the tensor.
        overlap: [N, N] share of directions that two models have in common.
        alignment: [N, N] share of directions that they have in common and map to the same place.
        energy:  sum of the squared norms of the deltas.
        users:   [r] effective number of models that use a direction, from 1 to N: ``1 / sum_i sigma_ik^4``.
        weights: [r] squared norm of the direction, in what all deltas add up to.
    """

    name: str
    overlap: Tensor
    alignment: Tensor
    energy: float
    users: Tensor
    weights: Tensor


def ranks(reader: DeltaReader, tensor: Matched, exact: bool) -> Ranks:
    """Return the leading singular values of every delta and the stable ranks; ``exact`` decomposes in full."""
    total = torch.zeros(tensor.base.shape, dtype=torch.float32)
    found, of_models, means = [], [], []
    for index, model in enumerate(tensor.models):
        delta = reader.delta(tensor.base, model)
        found.append(_leading(delta, exact))
        of_models.append(_stable_rank(delta, found[-1]))
        total += delta
        del delta
        if index == 0:
            means.append(of_models[0])
        else:
            of_mean = _leading(total, exact)
            means.append(_stable_rank(total, of_mean))
            found.append(of_mean)
    leading = [item.values.tolist() for item in (found[0], *found[1::2])]
    residual, missed = (max(getattr(item, name) for item in found) for name in ("residual", "missed"))
    return Ranks(leading, of_models, means, residual, missed)


def _leading(delta: Tensor, exact: bool) -> Leading:
    return Leading(spectrum(delta)[:LEADING]) if exact else leading_values(delta, LEADING)


def _stable_rank(delta: Tensor, found: Leading) -> float:
    largest = float(found.values[0]) if len(found.values) else 0.0
    return (float(torch.linalg.vector_norm(delta, dtype=torch.float64)) / largest) ** 2 if largest else 0.0


def spectra(reader: DeltaReader, tensor: Matched, beta: float, exact: bool) -> Spectra:
    """Return the singular values of the deltas, of their mean, and of the mean boosted by ``beta``.

    Of matrices whose shorter side is above ``WHOLE`` the leading ones alone, and no boosted ones, unless ``exact``.
    """
    whole = exact or min(tensor.base.shape) <= WHOLE
    total = torch.zeros(tensor.base.shape, dtype=torch.float32)
    values = []
    for model in tensor.models:
        delta = reader.delta(tensor.base, model)
        total += delta
        values.append(_values(delta, whole))
    merged = _values(total, whole) / len(values)
    return Spectra(tensor.name, tuple(values), merged, boosted_values(merged, beta) if whole else merged[:0])


def _values(delta: Tensor, whole: bool) -> Tensor:
    return spectrum(delta) if whole else top_singular(delta, SHOWN, tol=1e-2)[1].double()


def boosted_values(values: Tensor, beta: float) -> Tensor:
    """Return falling singular values as Subspace Boosting leaves them: none below the one where ``beta`` is reached.

    That one is the first at which the sum of the values, from the largest on, is at least ``beta`` of the whole.
    """
    before = int((values.cumsum(0) < beta * values.sum()).sum())
    # With beta 1, rounding may keep the sum from ever reaching it.
    return values.clamp(min=values[min(before, len(values) - 1)])


def directions(reader: DeltaReader, tensor: Matched) -> Directions | None:
    """Return the shared and own directions of the models in one matrix; None where all deltas are zero.

    They are the directions of the shorter side, so that the Gram matrices are as small as possible.
    """
    rows, columns = tensor.base.shape
    deltas = [reader.delta(tensor.base, model) for model in tensor.models]
    energy = sum(float(torch.linalg.vector_norm(delta)) ** 2 for delta in deltas)
    if not energy:
        return None
    narrow = [delta if columns <= rows else delta.mT for delta in deltas]
    result = higher_order_gsvd(narrow)
    users = 1 / result.sigma.pow(4).sum(0)
    weights = result.v.square().sum(0)
    return Directions(tensor.name, result.overlap(), result.alignment(narrow), energy, users, weights)


# Bounds of the memory that these take, from measurements (glibc, MKL), rounded up.


def ranks_bytes(tensors: Iterable[Matched], exact: bool) -> int:
    return max((_ranks_bytes(m, n, exact) for m, n in _sizes(tensors)), default=0)


def _ranks_bytes(m: int, n: int, exact: bool) -> int:
    return 4 * (6 * m * n + 5 * n * n) if exact else 4 * (4 * m * n + 5 * min(n, 256) ** 2 + 512 * (m + n))


def spectra_bytes(tensors: Iterable[Matched]) -> int:
    return max((4 * (6 * m * n + 8 * n * n) for m, n in _sizes(tensors)), default=0)


def directions_bytes(tensors: Sequence[Matched]) -> int:
    count = len(tensors[0].models) if tensors else 0
    return max((4 * (count + 4) * m * n + 8 * (count + 18) * n * n for m, n in _sizes(tensors)), default=0)


def _sizes(tensors: Iterable[Matched]) -> set[tuple[int, int]]:
    """Return the longer and the shorter side of each matrix."""
    return {(max(tensor.base.shape), min(tensor.base.shape)) for tensor in tensors}
