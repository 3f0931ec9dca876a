"""Linear merge: weighted average of whole models (model soups)."""

from __future__ import annotations

from ..steps.apply import Apply, WeightedSum
from ..steps.method import Group, Method, Parameter, method
from ._spans import divided


@method
class Linear(Method):
    """theta = sum_k w_k theta_k / sum_k w_k   (Wortsman et al. 2022, arXiv 2203.05482).

    Equal weights make a uniform soup. With ``normalize: false`` the sum is not divided. The weights are
    divided by their sum in float64 and rounded to float32 before they multiply.

    Raises ValueError when ``normalize`` is on and the weights cancel: their sum is at most 1e-7 of the
    sum of their magnitudes.
    """

    name = "linear"
    base = "ignored"
    parameters = (
        Parameter("weight", float, per_model=True, doc="coefficient of the model", neutral=1.0),
        Parameter("normalize", bool, True, doc="divide by the sum of the weights"),
    )
    summary = "weighted average"
    paper = "Wortsman et al. 2022, arXiv 2203.05482"
    on_strips = True
    adds_delta = False

    def merge(self, group: Group) -> Apply:
        return WeightedSum(divided(group) if group["normalize"] else group["weight"])
