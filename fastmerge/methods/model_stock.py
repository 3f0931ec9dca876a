"""Model Stock: pull the average of fine-tunes towards the base by the angle between them."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from ..kernels import keep_all
from ..steps.apply import SparseMerge
from ..steps.method import Group, Parameter, Solve, method
from ..steps.rows import RowGram, RowMerge, Rows
from ..steps.survey import Gram
from ._by_rows import ByRows

# mergekit's guards: products of norms are at least this, and a smaller denominator gives t = 0.
_EPSILON = 1e-6


@method
class ModelStock(ByRows):
    """theta = base + t * mean_k (theta_k - base), t = N c / (1 + (N-1) c)   (Jang et al. 2024, arXiv 2403.19522).

    c is the mean, over the pairs of models, of the cosine between their deltas, each flattened to one vector, clamped
    to [-1, 1]; it is computed in float64. With ``filter_wise: true`` every vector along the last dimension has a c and
    a t of its own. As in mergekit a cosine divides by at least 1e-6, so that c tends to 0 for deltas whose norms are
    below 1e-3, and t = 0 where |1 + (N-1) c| < 1e-6.

    Raises ValueError when a delta holds NaN or infinity.
    """

    name = "model_stock"
    base = "required"
    inputs = (2, None)
    parameters = (Parameter("filter_wise", bool, False, doc="one angle per vector along the last dimension"),)
    summary = "average, drawn to the base by the angles"
    paper = "Jang et al. 2024, arXiv 2403.19522"

    def rows(self, group: Group) -> Rows | None:
        return Rows.along(group.shape, -1) if group["filter_wise"] else None

    def merge(self, group: Group) -> Solve:
        rows = self.rows(group)
        gram = (yield Gram())[None] if rows is None else (yield RowGram(rows))
        if not np.isfinite(gram).all():
            raise ValueError(f"{group.name}: a delta holds NaN or infinity; there are no angles between the models")
        shares = _ratios(gram) / group.models
        if rows is None:
            return SparseMerge(shares.tolist() * group.models, [keep_all()] * group.models)
        return RowMerge(rows, np.repeat(shares.astype(np.float32)[:, None], group.models, 1))


def _ratios(gram: np.ndarray) -> np.ndarray:
    """Return t [vectors] from Gram matrices [vectors, N, N] of the deltas."""
    count = gram.shape[1]
    norms = np.sqrt(gram.diagonal(axis1=1, axis2=2))
    cosines = [
        np.clip(gram[:, i, j] / np.maximum(norms[:, i] * norms[:, j], _EPSILON), -1, 1)
        for i, j in combinations(range(count), 2)
    ]
    cosine = np.sum(cosines, axis=0) / len(cosines)
    denominator = 1 + (count - 1) * cosine
    opposite = np.abs(denominator) < _EPSILON
    return np.where(opposite, 0.0, count * cosine / np.where(opposite, 1.0, denominator))
