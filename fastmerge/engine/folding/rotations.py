"""Rotations of the input: OFT and BOFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .elements import product
from .low_rank import Term
from .memory import STEP

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Rotation"]


class Rotation(Term):
    """OFT and BOFT: ``W R^T`` with block-diagonal rotations R; BOFT scales the rows of the result, too.

    A rotation is Cayley's transform of a skew-symmetric matrix, or the start of its Neumann series: float64, rounded.
    """

    def make(self) -> None:
        import torch

        stored = self.parts[0].cpu().double()
        if self.adapter.kind == "boft":
            skew = 0.5 * (stored[0] - stored[0].mT)
            terms, bound = 0.0, 0.0
        else:
            terms, bound, size = self.adapter.detail
            rows, columns = torch.triu_indices(int(size), int(size), 1)
            skew = torch.zeros(len(stored), int(size), int(size), dtype=torch.float64)
            skew[:, rows, columns] = stored
            skew -= skew.mT.clone()
        if bound:
            # Constrained rotations: a matrix that is longer than the bound is shortened to it.
            bound /= len(skew) ** 0.5
            norms = torch.linalg.vector_norm(skew, dim=(1, 2), keepdim=True)
            skew = torch.where(norms <= bound, skew, skew * (bound / norms))
        # Transposed, so that rows of the weight are multiplied from the left.
        self.made[0].copy_(_cayley(skew, int(terms)).mT)

    def add(self, out: Tensor, weight: Tensor, first: int) -> None:
        rotations = self.made[0]
        size = rotations.shape[1]
        rows = max(1, STEP // size)
        for start in range(0, len(out), rows):
            part, stored = out[start : start + rows], weight[start : start + rows]
            for block in range(out.shape[1] // size):
                at = slice(block * size, (block + 1) * size)
                own = rotations[block if len(rotations) > 1 else 0]
                part[:, at] = product(stored[:, at].float().contiguous(), own)
        if self.adapter.kind == "boft":
            out *= self.parts[1][first : first + len(out)]


def _cayley(skew: Tensor, terms: int) -> Tensor:
    """Return ``(I - S) (I + S)^-1``; or of its series, I + 2 S + 2 S^2 + .., so many terms, the last one once."""
    import torch

    identity = torch.eye(skew.shape[-1], dtype=skew.dtype).expand_as(skew)
    if not terms:
        return torch.linalg.solve(identity + skew, identity - skew, left=False)
    total = identity.clone()
    power = skew
    if terms > 1:
        total += 2 * skew
    if terms > 2:
        # PEFT's series has at least the cube where it has the square.
        for _ in range(2, max(terms - 1, 3)):
            power = power @ skew
            total += 2 * power
        total += power @ skew
    return total
