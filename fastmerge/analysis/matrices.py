"""Spectra of whole deltas: stable ranks as models are added, singular values, shared and own directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.reading import DeltaReader
from ..kernels.spectral import higher_order_gsvd, spectrum, stable_rank
from .family import Matched

__all__ = [
    "Directions",
    "Spectra",
    "boosted_values",
    "collapse",
    "collapse_bytes",
    "directions",
    "directions_bytes",
    "spectra",
    "spectra_bytes",
]


@dataclass(frozen=True)
class Spectra:
    """Singular values of one matrix, falling, float64.

    Attributes:
        name:    of the tensor.
        models:  of each model's delta.
        merged:  of the mean of the deltas.
        boosted: of the mean after Subspace Boosting.
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


def collapse(reader: DeltaReader, tensor: Matched) -> list[float]:
    """Return the stable rank of the mean of the first 1, 2, ... N deltas; 0 for a mean that is zero."""
    total = torch.zeros(tensor.base.shape, dtype=torch.float32)
    ranks = []
    for model in tensor.models:
        total += reader.delta(tensor.base, model)
        ranks.append(float(stable_rank(total)))
    return ranks


def spectra(reader: DeltaReader, tensor: Matched, beta: float) -> Spectra:
    """Return the singular values of the deltas, of their mean, and of the mean boosted by ``beta``."""
    total = torch.zeros(tensor.base.shape, dtype=torch.float32)
    values = []
    for model in tensor.models:
        delta = reader.delta(tensor.base, model)
        total += delta
        values.append(spectrum(delta))
    merged = spectrum(total) / len(values)
    return Spectra(tensor.name, tuple(values), merged, boosted_values(merged, beta))


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


# Bounds of the memory that these take, from measurements (glibc, MKL), rounded up. The search of the stable rank is not
# sure to converge, so room for a full decomposition is part of it.


def collapse_bytes(tensors: Iterable[Matched]) -> int:
    return max((4 * (6 * m * n + 5 * n * n) for m, n in _sizes(tensors)), default=0)


def spectra_bytes(tensors: Iterable[Matched]) -> int:
    return max((4 * (6 * m * n + 8 * n * n) for m, n in _sizes(tensors)), default=0)


def directions_bytes(tensors: Sequence[Matched]) -> int:
    count = len(tensors[0].models) if tensors else 0
    return max((4 * (count + 4) * m * n + 8 * (count + 18) * n * n for m, n in _sizes(tensors)), default=0)


def _sizes(tensors: Iterable[Matched]) -> set[tuple[int, int]]:
    """Return the longer and the shorter side of each matrix."""
    return {(max(tensor.base.shape), min(tensor.base.shape)) for tensor in tensors}
