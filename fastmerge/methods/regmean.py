"""RegMean: the linear layer whose outputs are nearest to those of all models, in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..steps.apply import Apply, WeightedSum
from ..steps.method import Group, Method, Parameter, method
from ..steps.source import Chunk
from ._spans import divided
from ._statistics import Statistics, named, open_statistics, strangers

if TYPE_CHECKING:
    from torch import Tensor


@method
class RegMean(Method):
    """theta^T = (sum_k w_k G_k)^-1 sum_k w_k G_k theta_k^T   (Jin et al. 2023, arXiv 2212.09849).

    theta [out, in] is the weight of a linear layer, and G_k [in, in] the Gram matrix of the inputs that model k's layer
    sees, ``X^T X`` over their number, with everything off its diagonal times ``reduction``: a tensor of the weight's
    name in the file or folder that the parameter ``gram`` names; ``fastmerge.statistics.grams`` makes one from texts. A
    tensor that no file has, such as an embedding, and all without files, is the mean ``sum w_k theta_k / sum w_k``.

    In float64, by Cholesky. ``ridge`` times the mean of the diagonal of ``sum w_k G_k`` is added to it, and as much of
    the mean of the theta_k to the right side: where inputs never occur the mean stays, and the paper's inverse fails.

    Names are those of the output: made for merges of whole models, not of slices.
    Raises ValueError when weights cancel, for statistics that lack, or have in another shape, what others have, and
    when they hold NaN or infinity or are no Gram matrices.
    """

    name = "regmean"
    base = "ignored"
    parameters = (
        Parameter("weight", float, 1.0, per_model=True, minimum=0.0, doc="coefficient of the model's inputs"),
        Parameter("gram", str, "", per_model=True, doc="file or folder of the Gram matrices of the model's inputs"),
        Parameter("reduction", float, 0.9, minimum=0.0, maximum=1.0, doc="factor of what lies off the diagonals"),
        Parameter("ridge", float, 1e-6, minimum=0.0, doc="share of the mean of the diagonal that is added to it"),
    )
    semantics = ("paper",)
    adds_delta = False
    summary = "average that keeps the outputs of layers"
    paper = "Jin et al. 2023, arXiv 2212.09849"

    def merge(self, group: Group) -> Apply:
        means = divided(group)
        statistics = self._statistics(group)
        if not statistics:
            return WeightedSum(means)
        return RegMeanSolve(group, statistics, means)

    def identities(self, groups: Sequence[Group]) -> Iterable[str]:
        return [item.identity for item in named(groups, "gram")]

    def refusals(self, groups: Sequence[Group]) -> Iterable[str]:
        return strangers(groups, "gram")

    def scratch_bytes(self, group: Group) -> int | None:
        """Gram matrices as they are read, added up and factored, and right sides, all in float64."""
        if not self._statistics(group):
            return None
        columns = group.shape[-1]
        return 8 * (5 * columns * columns + 3 * group.numel)

    def cost(self, group: Group) -> float:
        return float(group.models * (group.numel + group.shape[-1] ** 2) * group.shape[-1])

    def _statistics(self, group: Group) -> list[Statistics]:
        found = open_statistics(group, "gram")
        for item in found:
            shape = tuple(item.entries[group.name].shape)
            if len(group.shape) != 2 or shape != (group.shape[1],) * 2:
                raise ValueError(
                    f"{group.name}: is a weight of shape {group.shape}, but a Gram matrix {shape} in {item.path}"
                )
        return found


@dataclass(frozen=True)
class RegMeanSolve(Apply):
    """The solution for one weight; of a whole tensor."""

    group: Group
    statistics: Sequence[Statistics]
    means: Sequence[float]

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        import torch

        group, columns = self.group, self.group.shape[1]
        device = out.device
        left = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        right = torch.zeros(columns, group.shape[0], dtype=torch.float64, device=device)
        mean = torch.zeros_like(right)
        for tensor, item, weight, share in zip(
            chunk.tensors, self.statistics, group["weight"], self.means, strict=True
        ):
            gram = item.whole(group.name).to(device).double()
            diagonal = gram.diagonal().clone()
            gram *= weight * group["reduction"]
            gram.diagonal().copy_(weight * diagonal)
            transposed = tensor.view(group.shape).t().double()
            left += gram
            right += gram @ transposed
            mean += share * transposed
        ridge = group["ridge"] * left.diagonal().mean()
        left.diagonal().add_(ridge)
        right += ridge * mean
        if not (left.isfinite().all() and right.isfinite().all()):
            raise ValueError(f"{group.name}: an input or its statistics hold NaN or infinity")
        factor, failed = torch.linalg.cholesky_ex(left)
        if failed:
            raise ValueError(
                f"{group.name}: the Gram matrices do not determine the weights; raise ridge, lower reduction, or "
                "measure on more texts"
            )
        out.copy_(torch.cholesky_solve(right, factor).t().view(out.shape))
