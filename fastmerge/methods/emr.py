"""EMR merging: one unified delta for all models, and a mask and a scale that give each of them back."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ..steps.apply import ElementwiseMerge
from ..steps.arrays import above, maximum, minimum, where, zeros_like
from ..steps.census import Census
from ..steps.elements import ElementSums
from ..steps.method import Group, Method, Parameter, Solve, method
from ..steps.source import Source
from ..steps.survey import Survey

if TYPE_CHECKING:
    from torch import Tensor


@method
class Emr(Method):
    """theta = base + s_j M_j u, j = task: unified delta u, mask M_j, scale s_j   (Huang et al. 2024, arXiv 2405.17461).

    With d_k = theta_k - base, per element::

        u    the largest |d_k| of those with the sign of sum_k d_k, with that sign (- where the sum is 0)
        M_j  1 where d_j has the sign of u, else 0
        s_j  mean |d_j| / mean |M_j u|, each the sum over all tensors of their means: one number for the model

    ``task`` counts the models from 0; -1 gives ``base + u``, without mask and scale. ``fastmerge.emr`` stores u, masks
    and scales of all models, from which any of them is restored. Reads the model once before it merges; a tensor that
    is merged by itself is a model.

    Raises ValueError when a delta of model ``task`` holds NaN or infinity. Otherwise they propagate.
    """

    name = "emr"
    base = "required"
    parameters = (
        Parameter("task", int, minimum=-1, doc="the model that is restored, from 0; -1: none", neutral=0, example=1),
    )
    semantics = ("paper",)
    summary = "elected delta, mask and scale of one task"
    paper = "Huang et al. 2024, arXiv 2405.17461"
    on_strips = True
    ordered = True

    def censuses(self, group: Group) -> int:
        return int(group["task"] >= 0)

    def merge(self, group: Group) -> Solve:
        task, ones = group["task"], [1.0] * group.models
        if task >= group.models:
            raise ValueError(f"{group.name}: task is {task}; expected -1 to {group.models - 1}, one of the models")
        if task < 0:
            return ElementwiseMerge(ones, _unified)
        means = yield Census(f"emr {task}", Means(ones, task, group.name), operator.add, group)
        return ElementwiseMerge(ones, partial(_masked, task=task), scale=scale_of(means))


def unify(deltas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the unified delta, and the elected sign of every element (1 or -1); a model's mask is where it has it.

    Per element the sign is that of the sum, - where that is 0; the magnitude is the largest of the deltas that have it.
    NaN and infinity make the unified delta NaN or infinite.
    """
    total, highest, lowest = (zeros_like(deltas[0]) for _ in range(3))
    for delta in deltas:
        total += delta
        maximum(highest, delta, out=highest)
        minimum(lowest, delta, out=lowest)
    plus = above(total, 0)
    unified = where(plus, highest, lowest)
    unified += total - total  # NaN where infinities met
    return unified, plus * 2 - 1


def mask_of(delta: Tensor, sign: Tensor) -> Tensor:
    """Return 1 where a delta has the elected sign and 0 elsewhere, float32."""
    return above(delta * sign, 0)


def scale_of(means: Sequence[tuple[float, float]]) -> float:
    """Return the scale of a model from the means over its tensors: of its own magnitudes, and of the masked ones."""
    own, masked = math.fsum(pair[0] for pair in means), math.fsum(pair[1] for pair in means)
    return own / masked if masked else 1.0


@dataclass(frozen=True)
class Means(Survey):
    """The means of ``|d_j|`` and of the magnitudes that its mask keeps, as a list of one pair; none of no elements."""

    weights: Sequence[float]
    task: int
    name: str = field(compare=False)

    def run(self, source: Source) -> list[tuple[float, float]]:
        own, masked = ElementSums(self.weights, partial(_magnitudes, task=self.task), 2).run(source)
        if not math.isfinite(own + masked):
            raise ValueError(f"{self.name}: a delta of model {self.task} holds NaN or infinity")
        return [(own / source.numel, masked / source.numel)] if source.numel else []


def _unified(deltas: Sequence[Tensor], merged: Tensor) -> Tensor:
    return unify(deltas)[0]


def _masked(deltas: Sequence[Tensor], merged: Tensor, task: int) -> Tensor:
    unified, sign = unify(deltas)
    # A product, so that NaN and infinity stay.
    unified *= mask_of(deltas[task], sign)
    return unified


def _magnitudes(deltas: Sequence[Tensor], merged: Tensor, task: int) -> list[Tensor]:
    return [deltas[task], _masked(deltas, merged, task)]
