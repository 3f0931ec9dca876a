"""ExPO: extrapolate from one checkpoint through a later one."""

from __future__ import annotations

from ..kernels import keep_all
from ..steps.apply import Apply, SparseMerge
from ..steps.method import Group, Method, Parameter, method


@method
class Expo(Method):
    """theta = theta_0 + alpha (theta_0 - base)   (Zheng et al. 2024, arXiv 2404.16792).

    The base is a model before a training step that went too short, such as preference optimization, and theta_0 the one
    after it. alpha > 0 goes on in that direction; the paper searches 0.1 to 0.5. alpha = 0 is theta_0, -1 the base.
    Computed as base + (1 + alpha) (theta_0 - base). NaN and infinity propagate.
    """

    name = "expo"
    base = "required"
    inputs = (1, 1)
    parameters = (Parameter("alpha", float, doc="how far to go on, as a share of the step", neutral=0.0, example=0.3),)
    semantics = ("paper",)
    summary = "extrapolation along the delta of a model"
    paper = "Zheng et al. 2024, arXiv 2404.16792"
    on_strips = True

    def merge(self, group: Group) -> Apply:
        return SparseMerge([1 + group["alpha"]], [keep_all()])
