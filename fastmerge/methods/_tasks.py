"""What methods share that ask which models need an element of a merged delta."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ..kernels import keep_all
from ..steps.apply import SparseMerge
from ..steps.arrays import above
from ..steps.method import Group, Parameter
from ..steps.survey import Survey
from ._sparse import density_parameter, keep_largest

if TYPE_CHECKING:
    from torch import Tensor

TASK_WEIGHT = Parameter("weight", float, 1.0, per_model=True, doc="coefficient of the model's delta")
MASK_LAMBDA = Parameter(
    "mask_lambda", float, 0.6, per_model=True, minimum=0.0,
    doc="how large a model's delta must be beside the rest of the merged one to count as needed",
)  # fmt: skip
MERGE = Parameter("merge", str, "sum", choices=("sum", "ties"), doc="how the merged delta is made")
TASK_DENSITY = density_parameter("share of each delta that takes part with merge: ties")


def merged_tasks(group: Group) -> Generator[Survey, Any, SparseMerge]:
    """Return the step that makes the merged delta: the sum, or that of the elements with the elected sign."""
    if group["merge"] == "ties":
        keeps = yield from keep_largest(group, least=1)
        return SparseMerge(group["weight"], keeps, vote="weighted")
    return SparseMerge(group["weight"], [keep_all()] * group.models)


def needed(delta: Tensor, merged: Tensor, mask_lambda: float) -> Tensor:
    """Return 1 where a model needs ``merged``, its ``delta`` is there and not drowned by the others, elsewhere 0."""
    return above(abs(delta), abs(merged - delta) * mask_lambda)
