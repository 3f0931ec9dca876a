"""Low-rank terms: LoRA, DoRA, AdaLoRA, VeRA, and LoRA of stacked experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ... import kernels
from ...plan.types import Adapter
from .memory import scaled_shapes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Dora", "Experts", "Scaled", "Term"]


class Term:
    """An adapter in memory, a low-rank term: ``scale * up @ down``.

    Subclasses are the other kinds. ``parts`` are what is stored, float32; ``made`` is what is made of them once, by
    ``make``, in room of the shapes that ``made_shapes`` names.
    """

    def __init__(self, adapter: Adapter, parts: Sequence[Tensor], made: Sequence[Tensor]):
        self.adapter, self.parts, self.made = adapter, parts, made

    def make(self) -> None:
        """Fill ``made`` from ``parts``."""
        if self.adapter.transposed:
            up, down = self.parts[:2]
            self.made[0].copy_(down.t())
            self.made[1].copy_(up.t())

    def add(self, out: Tensor, weight: Tensor, first: int) -> None:
        """Write the rows of ``weight``, from ``first`` on in the tensor, into ``out`` as the adapter changes them."""
        up, down = (self.made or self.parts)[:2]
        kernels.low_rank_update(out, weight, up[first : first + len(out)], down, self.adapter.scale)


class Dora(Term):
    """Each row of the sum is scaled to its magnitude: by the float32 quotient of the magnitude and the norm, which is
    summed in float64."""

    def add(self, out: Tensor, weight: Tensor, first: int) -> None:
        import torch

        super().add(out, weight, first)
        norms = torch.linalg.vector_norm(out, dim=1, dtype=torch.float64).float()
        out *= (self.parts[2][first : first + len(out)] / norms)[:, None]


class Scaled(Term):
    """Factors that vectors scale: AdaLoRA's ``up diag(e) down``, VeRA's ``diag(b) up diag(d) down``."""

    def make(self) -> None:
        (rows, _), (_, columns) = scaled_shapes(self.adapter)
        up, down, *vectors = self.parts
        up, down = up[:rows], down[:, :columns] * vectors[-1].view(-1, 1)
        if self.adapter.kind == "vera":
            up = up * vectors[0].view(-1, 1)
        for made, factor in zip(self.made, (down.t(), up.t()) if self.adapter.transposed else (up, down), strict=True):
            made.copy_(factor)


class Experts(Term):
    """Low-rank terms of stacked experts: lora_A has one after the other, lora_B has them in turn, rank by rank."""

    def make(self) -> None:
        up, down = self.parts
        count, expert = map(int, self.adapter.detail)
        each = up.view(len(up), -1, count).permute(2, 0, 1)  # [experts, out, rank]
        if expert >= 0:
            self.made[0].copy_(each[expert])
        elif self.adapter.transposed:
            self.made[0].copy_(down.view(count, -1, down.shape[1]).mT)
            self.made[1].copy_(each.mT)
        else:
            self.made[0].copy_(each)

    def add(self, out: Tensor, weight: Tensor, first: int) -> None:
        count, expert = map(int, self.adapter.detail)
        if expert >= 0:
            kernels.low_rank_update(
                out, weight, self.made[0][first : first + len(out)], self.parts[1], self.adapter.scale
            )
            return
        ups = self.made[0]
        downs = self.made[1] if self.adapter.transposed else self.parts[1].view(count, -1, out.shape[1])
        rows = ups.shape[1]
        start = 0
        while start < len(out):
            own, at = divmod(first + start, rows)
            stop = min(start + rows - at, len(out))
            up = ups[own, at : at + stop - start]
            kernels.low_rank_update(out[start:stop], weight[start:stop], up, downs[own], self.adapter.scale)
            start = stop
