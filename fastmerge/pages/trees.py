"""A tree of models that were joined one after the other, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .svg import BOLD, Axis, drawing, number, widest

__all__ = ["Branch", "tree"]

# Pixels from the most alike to the least, and of a leaf.
WIDE, HIGH = 260, 19


@dataclass(frozen=True)
class Branch:
    """Models that were joined.

    Attributes:
        leaves: their indices, in the order in which the tree has them.
        height: where its two parts were joined; of no meaning for a single model.
        parts:  the two parts; none of a single model.
    """

    leaves: tuple[int, ...]
    height: float = 1.0
    parts: tuple[Branch, ...] = ()

    def joins(self) -> list[float]:
        """Return the heights of all joins, inner ones first."""
        return [*(height for part in self.parts for height in part.joins()), *([self.height] if self.parts else [])]


def tree(root: Branch, labels: Sequence[str], title: str, along: str) -> str:
    """Return a tree with its leaves on the left; a join is the farther right the smaller its height, at most 1."""
    left, tall = 12 + widest(labels), HIGH * len(root.leaves)
    axis = Axis(min(0.0, *root.joins()) if root.parts else 0.0, 1.0, WIDE, False)
    parts = [f'<text class="t" x="0" y="13">{escape(title)}</text>', f'<g transform="translate({left:.0f},24)">']
    for value in axis.ticks():
        x = WIDE - axis(value)
        parts.append(f'<path class="g" d="M{x:.1f} 0V{tall}"/>')
        parts.append(f'<text class="m" x="{x:.1f}" y="{tall + 14}">{number(value)}</text>')
    for place, leaf in enumerate(root.leaves):
        parts.append(f'<text class="r" x="-6" y="{(place + 0.5) * HIGH + 4:.1f}">{escape(labels[leaf])}</text>')
    parts.append(f'<text class="m" x="{WIDE / 2}" y="{tall + 31}">{escape(along)}</text>')
    _draw(root, 0, axis, labels, parts)
    return drawing(max(left + WIDE + 24, BOLD * widest([title])), tall + 62, [*parts, "</g>"])


def _draw(branch: Branch, first: int, axis: Axis, labels: Sequence[str], parts: list[str]) -> tuple[float, float]:
    """Draw a branch whose leaves begin at row ``first``; return where the line to its parent begins."""
    if not branch.parts:
        return 0.0, (first + 0.5) * HIGH
    ends = []
    for part in branch.parts:
        ends.append(_draw(part, first, axis, labels, parts))
        first += len(part.leaves)
    (x1, y1), (x2, y2) = ends
    x = WIDE - axis(branch.height)
    name = f"{', '.join(labels[leaf] for leaf in branch.leaves)}: {number(branch.height)}"
    parts.append(
        f'<path class="b" d="M{x1:.1f} {y1:.1f}H{x:.1f}V{y2:.1f}H{x2:.1f}"><title>{escape(name)}</title></path>'
    )
    return x, (y1 + y2) / 2
