"""What a merge kept of each model: sums over elements, which add up over tensors, and the numbers that follow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..analysis.measures import Measure

__all__ = ["Effect", "Moved", "add_effects", "add_moves", "effect_of", "moved"]


@dataclass(frozen=True)
class Effect:
    """One model and the result. d is the model minus the base, m the result minus the base; without a base themselves.

    Attributes:
        elements: of the tensors.
        square, merged, inner: sums of d d, m m and d m, in float64.
        changed:  elements that the model changed.
        same:     of these, elements that the merge moved in the same direction.
        opposed:  of these, elements that the merge moved in the other direction.
        based:    False where there was no base.
    """

    elements: int
    square: float
    merged: float
    inner: float
    changed: int
    same: int
    opposed: int
    based: bool

    @property
    def norm(self) -> float:
        """Norm of d."""
        return math.sqrt(self.square)

    @property
    def cosine(self) -> float:
        """Of d and m; NaN where one of them is zero."""
        norms = math.sqrt(self.square) * math.sqrt(self.merged)
        return max(-1.0, min(1.0, self.inner / norms)) if norms else math.nan

    @property
    def kept(self) -> float:
        """How much of d is in m, along d: 1 is all of it, 0 nothing, below 0 the opposite; NaN where d is zero."""
        return self.inner / self.square if self.square else math.nan

    @property
    def same_direction(self) -> float:
        """Share of the elements that the model changed which the merge moved likewise."""
        return self.same / self.changed if self.changed else math.nan

    @property
    def reversed(self) -> float:
        """Share of the elements that the model changed which the merge moved the other way."""
        return self.opposed / self.changed if self.changed else math.nan

    @property
    def distance(self) -> float:
        """Norm of m - d over that of d, so that without a base it is how far the result is from the model."""
        apart = max(0.0, self.merged + self.square - 2 * self.inner)
        return math.sqrt(apart / self.square) if self.square else math.nan


@dataclass(frozen=True)
class Moved:
    """Where the result went: ``base`` and ``square`` are sums of squares of the base and of m; ``changed`` elements."""

    elements: int
    base: float
    square: float
    changed: int

    @property
    def norm(self) -> float:
        return math.sqrt(self.square)

    @property
    def relative_norm(self) -> float:
        """Norm of m over that of the base; NaN where the base is zero."""
        return math.sqrt(self.square / self.base) if self.base else math.nan

    @property
    def density(self) -> float:
        return self.changed / self.elements if self.elements else math.nan


def effect_of(found: Measure, model: int, based: bool) -> Effect:
    """Return what became of the model with that index; the last tensor of the measure is the result."""
    changed, opposed = int(found.changed[model, -1]), int(found.opposed[model, -1])
    return Effect(
        found.numel, float(found.gram[model, model]), float(found.gram[-1, -1]), float(found.gram[model, -1]),
        int(found.changed[model, model]), changed - opposed, opposed, based,
    )  # fmt: skip


def moved(found: Measure) -> Moved:
    """Return where the last tensor of the measure went."""
    return Moved(found.numel, found.base, float(found.gram[-1, -1]), int(found.changed[-1, -1]))


def add_effects(effects: Iterable[Effect]) -> Effect:
    """Return the effect on several tensors together; at least one, all with a base or all without."""
    found = list(effects)
    return Effect(
        sum(item.elements for item in found), math.fsum(item.square for item in found),
        math.fsum(item.merged for item in found), math.fsum(item.inner for item in found),
        sum(item.changed for item in found), sum(item.same for item in found), sum(item.opposed for item in found),
        found[0].based,
    )  # fmt: skip


def add_moves(moves: Iterable[Moved]) -> Moved:
    """Return several tensors together."""
    found = list(moves)
    return Moved(
        sum(item.elements for item in found), math.fsum(item.base for item in found),
        math.fsum(item.square for item in found), sum(item.changed for item in found),
    )  # fmt: skip
