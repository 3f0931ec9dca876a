"""MultiSLERP: the weighted mean of directions on the sphere, scaled by the weighted mean norm."""

from __future__ import annotations

import math

from ..steps.apply import Copy, SpanSum
from ..steps.method import Group, Method, Parameter, Solve, method
from ._spans import divided, dot, finite_gram, norm


@method
class MultiSlerp(Method):
    """theta = sum_k w_k |v_k| * s / |s|, s = sum_k w_k v_k / (|v_k| + eps)   (mergekit).

    v_k is theta_k flattened to one vector; with a base it is ``theta_k - base``, and the base is added. The weights
    are divided by their sum, unless ``normalize_weights: false``. One input is returned as it is.

    mergekit then walks along the sphere by ``sum_k w_k (u_k - (u_k . s) s)``, the tangent at s / |s|. That is 0 but for
    rounding, and not walked here.

    Where |s| < eps directions cancel and have no mean: then ``sum_k w_k v_k``, as mergekit does for two inputs; it
    refuses more. Where all v_k are 0, as in a tensor that no fine-tune changed, the result is the base (or 0), where
    mergekit refuses too.

    Raises ValueError when an input holds NaN or infinity, and when weights to normalize cancel.
    """

    name = "multislerp"
    base = "optional"
    parameters = (
        Parameter("weight", float, per_model=True, doc="coefficient of the model's direction and norm", neutral=1.0),
        Parameter("normalize_weights", bool, True, doc="divide the weights by their sum"),
        Parameter(
            "eps", float, 1e-8, minimum=0.0, doc="added to norms; a mean direction shorter than it is taken for 0",
            example=1e-3,
        ),
    )  # fmt: skip
    summary = "spherical average around the mean"
    paper = "mergekit (Goddard et al. 2024, arXiv 2403.13257)"
    on_strips = True
    adds_delta = False
    homogeneous = False

    def merge(self, group: Group) -> Solve:
        if group.models == 1:
            return Copy(-1)
        weights = divided(group, "normalize_weights") if group["normalize_weights"] else group["weight"]
        gram = yield from finite_gram(group)
        norms = [math.sqrt(gram[k][k]) for k in range(group.models)]
        if not any(w * length for w, length in zip(weights, norms, strict=True)):
            return SpanSum([0.0] * group.models)
        eps = group["eps"]
        directions = [w / (length + eps) if length else 0.0 for w, length in zip(weights, norms, strict=True)]
        length = norm(directions, gram)
        if length >= eps and length > 0:
            size = dot(weights, norms) / length
            return SpanSum([size * coefficient for coefficient in directions])
        return SpanSum(weights)
