"""Task arithmetic: add, subtract and scale deltas."""

from __future__ import annotations

from ..kernels import keep_all
from ..steps.apply import Apply, SparseMerge
from ..steps.method import Group, Method, Parameter, method
from ._sparse import INT8_MASK, LAMBDA, WEIGHT, divisor


@method
class TaskArithmetic(Method):
    """theta = base + lambda * sum_k w_k (theta_k - base)   (Ilharco et al. 2023, arXiv 2212.04089).

    A negative weight removes what a model learned. With ``normalize`` the sum is divided by
    ``sum_k w_k`` (by 1 where its magnitude is below 1e-8).

    semantics peft: ``task_arithmetic`` of PEFT, the same sum without ``normalize`` and ``lambda``.
    """

    name = "task_arithmetic"
    base = "required"
    parameters = (
        WEIGHT,
        Parameter("normalize", bool, False, semantics=("mergekit",), doc="divide by the sum of the weights"),
        LAMBDA,
        INT8_MASK,
        # mergekit knows these two for every method of the family, and leaves them unused here.
        Parameter("density", float, 1.0, per_model=True, semantics=("mergekit",), doc="accepted; has no effect"),
        Parameter("rescale", bool, False, semantics=("mergekit",), doc="accepted; has no effect"),
    )
    semantics = ("mergekit", "peft")
    summary = "the base plus the weighted sum of deltas"
    paper = "Ilharco et al. 2023, arXiv 2212.04089"
    on_strips = True

    def merge(self, group: Group) -> Apply:
        keeps = [keep_all()] * group.models
        if group.semantics == "peft":
            return SparseMerge(group["weight"], keeps)
        return SparseMerge(group["weight"], keeps, divide=divisor(group), scale=group["lambda"])
