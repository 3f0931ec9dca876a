"""Which models go together: agreement over all matrices, and the subset whose models have least in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .matrices import Directions

__all__ = ["Choice", "choose", "mean_alignment", "mean_overlap"]

# Beyond this many subsets, models are left out one by one instead of trying every subset.
MOST_SUBSETS = 200_000


@dataclass(frozen=True)
class Choice:
    """Attributes:
    models:  indices of the chosen models, rising.
    score:   mean alignment of its pairs.
    usual:   mean alignment of the pairs of all models: that of a subset drawn at random, on average.
    every:   True when all subsets were compared.
    """

    models: tuple[int, ...]
    score: float
    usual: float
    every: bool


def mean_overlap(found: Sequence[Directions]) -> Tensor:
    """Return the [N, N] overlap over several matrices, each weighted by the squared norm of its deltas."""
    return _mean_over(found, [item.overlap for item in found])


def mean_alignment(found: Sequence[Directions]) -> Tensor:
    """Return the [N, N] alignment over several matrices, weighted likewise."""
    return _mean_over(found, [item.alignment for item in found])


def _mean_over(found: Sequence[Directions], tables: Sequence[Tensor]) -> Tensor:
    total = sum(item.energy for item in found)
    return torch.stack([table * (item.energy / total) for item, table in zip(found, tables, strict=True)]).sum(0)


def choose(alignment: Tensor, count: int) -> Choice:
    """Return the ``count`` (2 or more) models whose pairs are aligned least on average; of equal ones, the first.

    Every subset is compared where there are few enough; otherwise the model that is aligned most with the rest is left
    out, again and again.
    """
    models, table = len(alignment), alignment.tolist()
    every = math.comb(models, count) <= MOST_SUBSETS
    if every:
        best = min(itertools.combinations(range(models), count), key=lambda subset: _mean(table, subset))
    else:
        rest = list(range(models))
        while len(rest) > count:
            worst = max(rest, key=lambda model: sum(table[model][other] for other in rest if other != model))
            rest.remove(worst)
        best = tuple(rest)
    return Choice(best, _mean(table, best), _mean(table, range(models)), every)


def _mean(alignment: Sequence[Sequence[float]], subset: Sequence[int]) -> float:
    """Return the mean alignment of the pairs of ``subset``."""
    pairs = [alignment[i][j] for i, j in itertools.combinations(subset, 2)]
    return math.fsum(pairs) / len(pairs)
