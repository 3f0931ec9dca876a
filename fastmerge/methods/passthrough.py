"""Passthrough: one model's tensors as they are, or scaled."""

from __future__ import annotations

from ..steps.apply import Apply, Copy, WeightedSum
from ..steps.method import Group, Method, Parameter, method


@method
class Passthrough(Method):
    """theta = scale * theta_0; with scale 1, a copy.

    Stacks layers of several models into one (depth up-scaling) when slices name different layers.
    """

    name = "passthrough"
    base = "ignored"
    inputs = (1, 1)
    parameters = (Parameter("scale", float, 1.0, per_model=True, doc="factor of the tensor"),)
    summary = "one model, as it is or scaled"
    paper = "mergekit (Goddard et al. 2024, arXiv 2403.13257)"
    on_strips = True
    adds_delta = False

    def merge(self, group: Group) -> Apply:
        (scale,) = group["scale"]
        return Copy(0) if scale == 1 else WeightedSum([scale])
