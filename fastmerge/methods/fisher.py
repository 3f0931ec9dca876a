"""Fisher merging: a mean in which every element counts by how much its model depends on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import kernels
from ..steps.apply import Apply, WeightedSum
from ..steps.arrays import where
from ..steps.blocks import block_size
from ..steps.method import Group, Method, Parameter, method
from ..steps.source import Chunk
from ._spans import divided
from ._statistics import Statistics, named, open_statistics, strangers

if TYPE_CHECKING:
    from torch import Tensor


@method
class Fisher(Method):
    """theta = sum_k w_k (F_k + floor) theta_k / sum_k w_k (F_k + floor)   (Matena and Raffel 2022, arXiv 2111.09832).

    F_k is the diagonal of model k's Fisher information, a tensor of the same name and shape in the file or folder that
    its parameter ``fisher`` names; ``fastmerge.statistics.fisher`` makes one from texts. With ``normalize`` it is
    divided by its norm over the whole file. A tensor that no file has, and all without files, is the mean ``sum w_k
    theta_k / sum w_k``, and so is an element whose coefficients are all 0. ``floor`` keeps elements alive that no model
    depends on. Computed in float32, rounded once.

    Names are those of the output: made for merges of whole models, not of slices.
    Raises ValueError when weights cancel, and for statistics that lack, or have in another shape, what others have.
    NaN and infinity propagate.
    """

    name = "fisher"
    base = "ignored"
    parameters = (
        Parameter("weight", float, 1.0, per_model=True, doc="coefficient of the model's information"),
        Parameter("fisher", str, "", per_model=True, doc="file or folder of the model's diagonal Fisher information"),
        Parameter("normalize", bool, True, doc="divide the information of a model by its norm"),
        Parameter("floor", float, 1e-6, minimum=0.0, doc="added to the information of every element"),
    )
    semantics = ("paper",)
    adds_delta = False
    summary = "average weighted by Fisher information"
    paper = "Matena and Raffel 2022, arXiv 2111.09832"

    def merge(self, group: Group) -> Apply:
        means = divided(group)
        statistics = open_statistics(group, "fisher")
        if not statistics:
            return WeightedSum(means)
        for item in statistics:
            shape = tuple(item.entries[group.name].shape)
            if shape != group.shape:
                raise ValueError(f"{group.name}: has shape {group.shape}, but {shape} in {item.path}")
        norms = [item.norm or 1.0 for item in statistics] if group["normalize"] else [1.0] * group.models
        scales = [weight / norm for weight, norm in zip(group["weight"], norms, strict=True)]
        return FisherMean(group.name, statistics, scales, [w * group["floor"] for w in group["weight"]], means)

    def identities(self, groups: Sequence[Group]) -> Iterable[str]:
        return [item.identity for item in named(groups, "fisher")]

    def refusals(self, groups: Sequence[Group]) -> Iterable[str]:
        return strangers(groups, "fisher")


@dataclass(frozen=True)
class FisherMean(Apply):
    """``sum_k c_k theta_k / sum_k c_k`` with ``c_k = scales[k] * F_k + floors[k]``, in float32, in the inputs' order.

    Where the divisor is 0, ``sum_k means[k] theta_k``.
    """

    name: str
    statistics: Sequence[Statistics]
    scales: Sequence[float]
    floors: Sequence[float]
    means: Sequence[float]

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        import torch

        size, at = block_size(out), chunk.offset
        for target, *tensors in zip(*(t.view(-1).split(size) for t in (out, *chunk.tensors)), strict=True):
            total, divisor = torch.zeros(2, len(target), dtype=torch.float32, device=out.device)
            for tensor, item, scale, floor in zip(tensors, self.statistics, self.scales, self.floors, strict=True):
                share = item.read(self.name, at, at + len(target)).to(out.device)
                share.mul_(scale).add_(floor)
                total += share * tensor.float()
                divisor += share
            result = total.div_(divisor)
            if not divisor.all():
                mean = torch.empty_like(result)
                kernels.weighted_sum(mean, tensors, self.means)
                result = where(divisor == 0, mean, result)
            kernels.weighted_sum(target, [result], [1.0])
            at += len(target)
