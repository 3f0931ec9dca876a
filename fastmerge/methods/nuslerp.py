"""NuSLERP: spherical interpolation of two models, or of their deltas, whole or row by row."""

from __future__ import annotations

import numpy as np

from ..steps.apply import SpanSum
from ..steps.method import Group, Parameter, Solve, method
from ..steps.rows import RowGram, RowMerge, Rows
from ..steps.survey import Gram
from ._by_rows import ByRows

# mergekit's guards: norms are at least this, and below this square of a sine the arc is a line.
_TINY_NORM = 1e-7
_COLINEAR = 1e-16


@method
class NuSlerp(ByRows):
    """theta = sin((1-t) a) / sin(a) * v_0 + sin(t a) / sin(a) * v_1, t = w_1 / (w_0 + w_1)   (mergekit).

    v_k is theta_k; with a base it is ``theta_k - base``, and the base is added. a is the angle between v_0 and v_1,
    each flattened to one vector. With ``nuslerp_flatten: false`` there is an angle for every vector along the last
    dimension, or with ``nuslerp_row_wise: true`` along the first one. A norm below 1e-7 counts as 1e-7. Where
    sin(a)**2 <= 1e-16 the interpolation is linear. t is 0.5 where ``|w_0 + w_1| < 1e-6``.

    The angle is computed in float64. mergekit takes it in float32, where the angle of fine-tunes is often rounded to 0.

    Raises ValueError when an input holds NaN or infinity.
    """

    name = "nuslerp"
    base = "optional"
    inputs = (2, 2)
    parameters = (
        Parameter(
            "weight", float, per_model=True, doc="the second one's share of the sum is the position on the arc",
            neutral=1.0,
        ),
        Parameter("nuslerp_flatten", bool, True, doc="take the tensor for one vector"),
        Parameter(
            "nuslerp_row_wise", bool, False, doc="without flatten: vectors along the first dimension, not the last"
        ),
    )  # fmt: skip
    summary = "slerp of two models, or of their deltas"
    paper = "mergekit (Goddard et al. 2024, arXiv 2403.13257)"
    adds_delta = False

    def rows(self, group: Group) -> Rows | None:
        return None if group["nuslerp_flatten"] else Rows.along(group.shape, 0 if group["nuslerp_row_wise"] else -1)

    def merge(self, group: Group) -> Solve:
        rows = self.rows(group)
        gram = (yield Gram())[None] if rows is None else (yield RowGram(rows))
        if not np.isfinite(gram).all():
            raise ValueError(f"{group.name}: an input holds NaN or infinity; there is no angle to interpolate on")
        coefficients = _coefficients(gram, group["weight"])
        return SpanSum(coefficients[0].tolist()) if rows is None else RowMerge(rows, coefficients.astype(np.float32))


def _coefficients(gram: np.ndarray, weights: tuple[float, float]) -> np.ndarray:
    """Return the coefficients [vectors, 2] of the inputs from Gram matrices [vectors, 2, 2]."""
    total = sum(weights)
    shares = np.array([0.5, 0.5] if abs(total) < 1e-6 else [weight / total for weight in weights])
    norms = np.maximum(np.sqrt(gram.diagonal(axis1=1, axis2=2)), _TINY_NORM)
    cosine = np.clip(gram[:, 0, 1] / (norms[:, 0] * norms[:, 1]), -1, 1)[:, None]
    square = (1 - cosine) * (1 + cosine)
    line = square <= _COLINEAR
    return np.where(line, shares, np.sin(shares * np.arccos(cosine)) / np.sqrt(np.where(line, 1.0, square)))
