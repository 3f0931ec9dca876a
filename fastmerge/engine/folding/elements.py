"""Terms that are formed element by element: IA3, LoHa, LoKr, biases of factors, trained tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ... import kernels
from .low_rank import Term
from .memory import STEP, kronecker_sides

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Hadamard", "Kronecker", "Rows", "Scaling", "Vector", "product"]


class Vector(Term):
    """``scale * vector``, added to a bias."""

    def make(self) -> None:
        pass

    def add(self, out: Tensor, weight: Tensor, first: int) -> None:
        out.copy_(weight)
        out += self.parts[0] * self.adapter.scale


class Scaling(Vector):
    """IA3: rows or columns times a vector."""

    def add(self, out: Tensor, weight: Tensor, first: int) -> None:
        vector = self.parts[0].view(-1)
        out.copy_(weight)
        out *= vector if self.adapter.detail[0] else vector[first : first + len(out), None]


class Rows(Vector):
    """Trained tokens: their rows in place of the base's."""

    def make(self) -> None:
        import torch

        self._at = torch.tensor(self.adapter.detail, dtype=torch.int64, device=self.parts[0].device)

    def add(self, out: Tensor, weight: Tensor, first: int) -> None:
        out.copy_(weight)
        here = ((self._at >= first) & (self._at < first + len(out))).nonzero().view(-1)
        out[self._at[here] - first] = self.parts[0][here]


class Hadamard(Vector):
    """LoHa: ``scale * (w1_a @ w1_b) * (w2_a @ w2_b)``."""

    def add(self, out: Tensor, weight: Tensor, first: int) -> None:
        import torch

        for start, rows, stored in _steps(out, weight):
            at = slice(first + start, first + start + len(rows))
            one, two = (product(a[at], b) for a, b in (self.parts[:2], self.parts[2:]))
            one *= two
            one *= self.adapter.scale
            torch.add(stored.float(), one, out=rows)


class Kronecker(Term):
    """LoKr: ``scale * kron(w1, w2)``, where each of the two is stored as it is, or as a product."""

    def make(self) -> None:
        for made, own in zip(self.made, kronecker_sides(self.adapter, self.parts), strict=True):
            made.copy_(own[0] if len(own) == 1 else product(*own))

    def add(self, out: Tensor, weight: Tensor, first: int) -> None:
        import torch

        left, right = self.made
        for start, rows, stored in _steps(out, weight):
            at = torch.arange(first + start, first + start + len(rows), device=out.device)
            delta = left[at // len(right)][:, :, None] * right[at % len(right)][:, None, :]
            delta *= self.adapter.scale
            torch.add(stored.float(), delta.view(len(rows), -1), out=rows)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right``, float32, summed in order."""
    import torch

    out = torch.zeros(len(left), right.shape[1], device=left.device)
    kernels.low_rank_update(out, out, left.contiguous(), right.contiguous(), 1.0)
    return out


def _steps(out: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the rows of both a few at a time, with the first one's number."""
    rows = max(1, STEP // max(out.shape[1], 1))
    for start in range(0, len(out), rows):
        yield start, out[start : start + rows], weight[start : start + rows]
