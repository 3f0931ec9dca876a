"""Model Stock: pull the average of fine-tunes towards the base by the angle between them."""

from __future__ import annotations

from itertools import combinations

from torch import Tensor

from ..kernels import keep_all
from ..steps.apply import SparseMerge
from ..steps.method import Group, Method, Parameter, Solve, method
from ..steps.survey import Gram

# mergekit's guards: products of norms are at least this, and a smaller denominator gives t = 0.
_EPSILON = 1e-6


@method
class ModelStock(Method):
    """theta = base + t * mean_k (theta_k - base), t = N c / (1 + (N-1) c)   (Jang et al. 2024, arXiv 2403.19522).

    c is the mean, over the pairs of models, of the cosine between their deltas, each flattened to one
    vector, clamped to [-1, 1]; it is computed in float64. As in mergekit a cosine divides by at least
    1e-6, so that c tends to 0 for deltas whose norms are below 1e-3, and t = 0 where |1 + (N-1) c| < 1e-6.

    Raises ValueError when a delta holds NaN or infinity, and for ``filter_wise: true`` (one c per row),
    which is not offered.
    """

    name = "model_stock"
    base = "required"
    inputs = (2, None)
    parameters = (Parameter("filter_wise", bool, False, doc="one angle per row; not offered, must be false"),)
    paper = "Jang et al. 2024, arXiv 2403.19522"

    def merge(self, group: Group) -> Solve:
        if group["filter_wise"]:
            raise ValueError(f"{group.name}: model_stock with filter_wise: true is not offered; set it to false")
        gram = yield Gram()
        if not gram.isfinite().all():
            raise ValueError(f"{group.name}: a delta holds NaN or infinity; there are no angles between the models")
        t = _ratio(gram)
        return SparseMerge([t / group.models] * group.models, [keep_all()] * group.models)


def _ratio(gram: Tensor) -> float:
    """Return t from the Gram matrix [N, N] of the deltas."""
    count = len(gram)
    norms = gram.diagonal().sqrt().tolist()
    cosines = [
        max(-1.0, min(1.0, gram[i, j].item() / max(norms[i] * norms[j], _EPSILON)))
        for i, j in combinations(range(count), 2)
    ]
    cosine = sum(cosines) / len(cosines)
    denominator = 1 + (count - 1) * cosine
    return 0.0 if abs(denominator) < _EPSILON else count * cosine / denominator
