"""Subspace Boosting of any merged delta: the block ``boost:`` of a recipe, and the methods that end in ``_sb``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..steps.apply import DeltaMerge, MatrixPart
from ..steps.method import Group, Parameter
from ..steps.stacks import Stack
from ._heads import SPLITTINGS, Part, parts_of
from ._spectral import MATRICES, NULL_SPACE, Change, SpectralMerge, is_spectral, scratch_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.spectral import Info

# beta 0.2 is that of the study on language models (arXiv 2511.21437); the paper on vision models tuned over 0 .. 0.02.
BOOST_PARAMETERS = (
    Parameter(
        "beta", float, 0.2, minimum=0.0, maximum=1.0,
        doc="share of the sum of singular values, from the largest on, that is left as it is: a larger one boosts less",
    ),
    MATRICES,
    NULL_SPACE,
    Parameter(
        "splitting", str, "none", choices=SPLITTINGS,
        doc="boost attention projections whole, a fused one in its three parts, or every head for itself",
    ),
    Parameter("heads", int, 0, minimum=0, doc="attention heads; 0 takes them from config.json"),
    Parameter("kv_heads", int, 0, minimum=0, doc="heads of keys and values; 0 takes them from config.json"),
)  # fmt: skip


@dataclass(frozen=True)
class Boost:
    """How merged deltas are boosted; the fields are ``BOOST_PARAMETERS``, ``scale`` multiplies the boosted delta."""

    beta: float
    matrices: str
    null_space: str
    splitting: str
    heads: int
    kv_heads: int
    scale: float = 1.0

    @classmethod
    def of(cls, group: Group, prefix: str = "") -> Boost:
        """Return what the parameters of a group say; with the prefix ``boost.``, those of a block."""
        values = {parameter.name: group[prefix + parameter.name] for parameter in BOOST_PARAMETERS}
        return cls(**values, scale=group[f"{prefix}lambda"] if prefix else 1.0)

    def changes(self, group: Group) -> bool:
        """True where the tensor's delta is taken whole. With beta 1 every singular value stays as it is."""
        return is_spectral(group, self.matrices) and (self.beta < 1 or self.scale != 1)

    def extend(self, group: Group, step: DeltaMerge) -> DeltaMerge:
        """Return ``step`` with its merged delta boosted, or ``step`` itself where there is no matrix."""
        if not self.changes(group):
            return step
        change = self._change(group)
        if not isinstance(step, SpectralMerge):
            return SpectralMerge(group, [step], change, self.scale)
        return replace(step, change=_after(step.change, change), scale=step.scale * self.scale)

    def together(self, group: Group) -> bool:
        """True where ranks that each have rows or columns of the delta can boost it: one matrix, in one piece."""
        whole = len(group.shape) == 2 and self.splitting == "none"
        return whole and self.null_space == "keep" and self.changes(group)

    def stacks(self, group: Group) -> bool:
        """True where many matrices can be boosted at once: whole ones."""
        return self.splitting == "none" and self.changes(group)

    def scratch_bytes(self, group: Group, inner: int | None) -> int | None:
        """Return a bound of what the boosted step takes; ``inner`` is that of the step itself."""
        if not self.changes(group):
            return inner
        boost = scratch_bytes(group, deltas=1)
        # What the step changed is boosted while its deltas are still there; three matrices beside them were measured.
        return boost if inner is None else max(inner, boost) + 16 * math.prod(group.shape[-2:])

    def _change(self, group: Group) -> Change:
        if self.stacks(group):
            return Boosted(self.beta, self.null_space)
        parts = parts_of(group, self.splitting, self.heads, self.kv_heads)

        def boosted(matrices: list[Tensor], noise: float) -> tuple[Tensor, list[Info]]:
            return matrices[0], [info for part in parts for info in self._boost_part(matrices[0], part, noise)]

        return boosted

    def _boost_part(self, matrix: Tensor, part: Part, noise: float) -> list[Info]:
        """Boost the pieces of a part in place."""
        from ..kernels.spectral import subspace_boost

        pieces = matrix.narrow(part.axis, part.start, part.length).unflatten(part.axis, (part.count, -1))
        pieces = pieces.movedim(part.axis, 0)
        result, infos = subspace_boost(pieces, self.beta, null=self.null_space, noise=noise)
        pieces.copy_(result)
        return infos


@dataclass(frozen=True)
class Boosted(Stack):
    """Boosts whole matrices."""

    beta: float
    null_space: str

    def of_many(self, matrices: Tensor, noise: Sequence[float]) -> tuple[Tensor, list[Info]]:
        from ..kernels.spectral import subspace_boost

        return subspace_boost(matrices, self.beta, null=self.null_space, noise=noise)

    def of_part(self, matrix: Tensor, noise: float, part: MatrixPart) -> tuple[Tensor, Info] | None:
        from ..kernels.spectral import boost_part

        return boost_part(matrix, self.beta, dim=part.dim, total=part.total, noise=noise)


def _after(change: Change, boosted: Change) -> Change:
    """Return ``change``, then ``boosted`` on its result."""

    def both(matrices: list[Tensor], noise: float) -> tuple[Tensor, list[Info]]:
        result, infos = change(matrices, noise)
        result, more = boosted([result], noise)
        return result, infos + more

    return both
