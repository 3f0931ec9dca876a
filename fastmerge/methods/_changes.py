"""What the two RAM methods share: which models changed an element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..steps.arrays import above, zeros_like
from ..steps.method import Parameter

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = Parameter(
    "epsilon", float, 1e-5, minimum=0.0, neutral=0.0, example=1e-3,
    doc="an element that differs from the base's by no more was not changed",
)  # fmt: skip


def changes(deltas: Sequence[Tensor], epsilon: float) -> tuple[list[Tensor], Tensor]:
    """Return, per model, 1 where it changed an element and 0 elsewhere, and the number of models that did (float32)."""
    changed = [above(abs(delta), epsilon) for delta in deltas]
    count = zeros_like(deltas[0])
    for mask in changed:
        count += mask
    return changed, count
