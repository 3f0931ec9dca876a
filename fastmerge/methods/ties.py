"""TIES: trim, elect sign, disjoint merge."""

from __future__ import annotations

from ..apply import SparseMerge
from ..kernels import keep_all, keep_top
from ..survey import Boundaries
from ._base import Group, Method, Parameter, Solve, method


@method
class Ties(Method):
    """theta = base + lambda * disjoint mean of the trimmed deltas   (Yadav et al. 2023, arXiv 2306.01708)."""

    name = "ties"
    base = "required"
    parameters = (
        Parameter("weight", float, per_model=True, doc="coefficient of the delta; also its weight in the sign vote"),
        Parameter(
            "density", float, 1.0, per_model=True, minimum=0.0, maximum=1.0, doc="share of each delta that is kept"
        ),
        Parameter("normalize", bool, True, doc="divide by the weights that agree with the elected sign"),
        Parameter("lambda", float, 1.0, doc="scale of the merged delta"),
    )
    paper = "Yadav et al. 2023, arXiv 2306.01708"

    def merge(self, group: Group) -> Solve:
        ranks = [[max(1, int(density * group.numel))] for density in group["density"]]
        boundaries = yield Boundaries(ranks)
        keeps = [keep_all() if d >= 1 else keep_top(b) for d, (b,) in zip(group["density"], boundaries, strict=True)]
        return SparseMerge(
            group["weight"],
            keeps,
            vote="weighted",
            divide="weights" if group["normalize"] else "none",
            scale=group["lambda"],
        )
