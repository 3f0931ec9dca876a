"""Singular value calibration of any merged delta: the block ``svc:`` of a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..steps.apply import DeltaMerge
from ..steps.method import Group, Parameter
from ._spectral import MATRICES, SpectralMerge, delta_bytes, is_spectral, scratch_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.spectral import Info

SVC_PARAMETERS = (
    Parameter(
        "alpha", float, 0.0, minimum=0.0,
        doc="least coefficient of a model, a larger one shrinks more; 0 takes 1 / number of models, the paper's",
    ),
    MATRICES,
)  # fmt: skip


@dataclass(frozen=True)
class Svc:
    """How merged deltas are calibrated; the fields are ``SVC_PARAMETERS``."""

    alpha: float
    matrices: str

    @classmethod
    def of(cls, group: Group) -> Svc:
        return cls(group["svc.alpha"] or 1 / group.models, group["svc.matrices"])

    def extend(self, group: Group, step: DeltaMerge) -> DeltaMerge:
        """Return ``step`` with its merged delta calibrated, or ``step`` itself where there is no matrix."""
        if not is_spectral(group, self.matrices):
            return step
        if not isinstance(step, SpectralMerge):
            step = SpectralMerge(group, [step], lambda matrices, _: (matrices[0], []))
        inner = step

        def calibrated(matrices: list[Tensor], noise: float) -> tuple[Tensor, list[Info]]:
            merged, infos = inner.change(matrices[: -group.models], noise)
            result, more = calibrate(merged * inner.scale, matrices[-group.models :], self.alpha)
            return result, infos + more

        return replace(inner, change=calibrated, scale=1.0, singles=True)

    def scratch_bytes(self, group: Group, inner: int | None) -> int | None:
        """Return a bound of what the calibrated step takes; ``inner`` is that of the step itself."""
        if not is_spectral(group, self.matrices):
            return inner
        # Beside the merged delta: every model's own, and responses of one model with their squares.
        own = delta_bytes(group, group.models) + 16 * math.prod(group.shape[-2:])
        return max(inner or 0, scratch_bytes(group, deltas=1)) + own


def calibrate(merged: Tensor, deltas: list[Tensor], alpha: float) -> tuple[Tensor, list[Info]]:
    """Return ``merged`` [m, n] with every singular value s_r times ``K / sum_i max(alpha, <a, a_i> / |a_i|^2)``.

    Of the K ``deltas``, ``a_i = u_r^T delta_i`` are the responses in the direction u_r, and ``a = s_r v_r^T`` is that
    of ``merged``. A delta without a response counts alpha.
    """
    import torch

    from ..kernels.spectral import top_singular

    u, s, vh, infos = top_singular(merged, min(merged.shape))
    total = torch.zeros_like(s)
    for delta in deltas:
        responses = u.mT @ delta
        size = responses.square().sum(-1)
        along = s * (responses * vh).sum(-1)
        total += torch.where(size > 0, along / size, 0.0).clamp(min=alpha)
    return (u * (s * len(deltas) / total)) @ vh, infos
