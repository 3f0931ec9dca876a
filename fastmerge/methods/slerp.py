"""SLERP: spherical linear interpolation from the base to one model."""

from __future__ import annotations

import math

import numpy as np

from ..kernels import FoundFactors
from ..steps.apply import Copy, WeightedSum
from ..steps.method import Group, Method, Parameter, Solve, method
from ..steps.survey import Gram

# Beyond this cosine the arc is a line in float32, and 1 / sin would amplify rounding. csrc/arc.h has all of it, too.
_COLINEAR = 0.9995
_TINY_NORM = 1e-8


@method
class Slerp(Method):
    """theta = sin((1-t) a) / sin(a) * base + sin(t a) / sin(a) * theta_0   (Shoemake 1985).

    a is the angle between the two tensors, each flattened to one vector; a norm of at most 1e-8 counts
    as 1. The coefficients multiply the tensors themselves, not their directions. Where |cos a| > 0.9995,
    the usual case for fine-tunes of one base, the interpolation is linear: (1-t) base + t theta_0.
    t = 0 returns the base and t = 1 the model, exactly. The angle is computed in float64.

    Raises ValueError when a tensor holds NaN or infinity and t is neither 0 nor 1.
    """

    name = "slerp"
    base = "required"
    inputs = (1, 1)
    parameters = (
        Parameter(
            "t", float, doc="position on the arc: 0 is the base, 1 the model; others extrapolate",
            neutral=1.0, example=0.3,
        ),
    )  # fmt: skip
    summary = "spherical interpolation of two models"
    paper = "Shoemake 1985 (SIGGRAPH, 10.1145/325334.325242)"
    on_strips = True
    adds_delta = False
    leaves = True

    def merge(self, group: Group) -> Solve:
        t = group["t"]
        if t in (0, 1):
            return Copy(int(t))
        gram = yield Gram(deltas=False, arc=t)
        if isinstance(gram, FoundFactors):
            return WeightedSum(gram)
        if not np.isfinite(gram).all():
            raise ValueError(f"{group.name}: an input holds NaN or infinity; there is no angle to interpolate on")
        norms = [norm if norm > _TINY_NORM else 1.0 for norm in np.sqrt(gram.diagonal()).tolist()]
        cosine = max(-1.0, min(1.0, float(gram[0, 1]) / (norms[0] * norms[1])))
        if abs(cosine) > _COLINEAR:
            return WeightedSum([1 - t, t])
        angle = math.acos(cosine)
        return WeightedSum([math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)])
