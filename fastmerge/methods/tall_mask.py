"""TALL mask: what of a merged delta belongs to one of its models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..steps.apply import ElementwiseMerge
from ..steps.method import Group, Method, Parameter, Solve, method
from ._sparse import SCALE
from ._tasks import MASK_LAMBDA, MERGE, TASK_DENSITY, TASK_WEIGHT, merged_tasks, needed

if TYPE_CHECKING:
    from torch import Tensor


@method
class TallMask(Method):
    """theta = base + lambda * t where |d_j| > mask_lambda_j |t - d_j|, j = task   (Wang et al. 2024, arXiv 2405.07813).

    t is the merged delta of all models, as in ``consensus``; the result is model ``task`` (counted from 0) as far as t
    holds it: where its own delta d_j is not drowned by the others. Elsewhere the base. ``consensus`` keeps what several
    models need. Where t is NaN or infinite, the result is NaN or infinite.
    """

    name = "tall_mask"
    base = "required"
    parameters = (
        Parameter(
            "task", int, minimum=0, doc="the model that is taken out of the merged delta, from 0", neutral=0, example=1
        ),
        TASK_WEIGHT,
        MASK_LAMBDA,
        MERGE,
        TASK_DENSITY,
        SCALE,
    )
    semantics = ("paper",)
    ordered = True
    summary = "one task out of the merged delta"
    paper = "Wang et al. 2024, arXiv 2405.07813"
    on_strips = True

    def merge(self, group: Group) -> Solve:
        task = group["task"]
        if task >= group.models:
            raise ValueError(f"{group.name}: task is {task}; expected 0 to {group.models - 1}, one of the models")
        step = yield from merged_tasks(group)
        change = partial(_masked, task=task, mask_lambda=group["mask_lambda"][task])
        return ElementwiseMerge(group["weight"], change, step, group["lambda"])


def _masked(deltas: Sequence[Tensor], merged: Tensor, task: int, mask_lambda: float) -> Tensor:
    # A product, so that NaN and infinity stay.
    merged *= needed(deltas[task], merged, mask_lambda)
    return merged
