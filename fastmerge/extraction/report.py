"""What an extraction found, and its report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..results import Result
from ..sizes import show_size
from .selection import Other


@dataclass(frozen=True)
class Extracted:
    """One matrix in the adapter.

    Attributes:
        name:   of the base's tensor.
        shape:  of the tensor.
        rank:   of its factors.
        norm:   Frobenius norm of the delta.
        energy: share of its squared norm that the singular values kept hold.
        error:  ``||delta - lora_B lora_A||_F / ||delta||_F`` with the factors as written.
        method: how the triplets were found (``kernels.spectral.Info``).
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    norm: float
    energy: float
    error: float
    method: str


@dataclass(frozen=True, repr=False)
class ExtractionReport(Result):
    """Attributes:
    folder:    of the adapter.
    matrices:  what it approximates.
    others:    tensors that differ and are not approximated.
    unchanged: number of tensors that are equal in both models.
    nbytes:    size of the adapter's weights.
    seconds:   wall time.
    notes:     what is to be known of the models, one sentence each.
    """

    folder: str
    matrices: tuple[Extracted, ...]
    others: tuple[Other, ...]
    unchanged: int
    nbytes: int
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"adapter of {len(self.matrices)} matrices in {self.folder}: {100 * self.energy:.1f} % of the difference, "
            f"{show_size(self.nbytes)}"
        )

    def facts(self) -> list[tuple[str, str]]:
        low, *_, high = sorted(matrix.rank for matrix in (*self.matrices, *self.matrices))
        return [
            ("matrices", f"{len(self.matrices)}, of rank {low}" + (f" to {high}" if high > low else "")),
            ("energy", f"{100 * self.energy:.2f} % of the squared norm is kept"),
            ("error", f"{100 * self.error:.2f} % of the norm is missed"),
            ("others", f"{len(self.others)} tensors differ and are not approximated, {self.unchanged} are equal"),
            ("time", f"{self.seconds:.2f} s"),
        ]

    @property
    def energy(self) -> float:
        """Share of the squared norm of all matrices' deltas that is kept."""
        return sum(m.energy * m.norm**2 for m in self.matrices) / sum(m.norm**2 for m in self.matrices)

    @property
    def error(self) -> float:
        """Norm of all that the factors miss of these deltas, relative to theirs."""
        return math.sqrt(sum((m.error * m.norm) ** 2 for m in self.matrices) / sum(m.norm**2 for m in self.matrices))
