"""What the two RAM methods share: which models changed an element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..steps.method import Parameter

EPSILON = Parameter(
    "epsilon", float, 1e-5, minimum=0.0, neutral=0.0, example=1e-3,
    doc="an element that differs from the base's by no more was not changed",
)  # fmt: skip


def changes(deltas: Sequence[Tensor], epsilon: float) -> tuple[list[Tensor], Tensor]:
    """Return, per model, where it changed an element (bool), and the number of models that did (float32)."""
    changed = [delta.abs() > epsilon for delta in deltas]
    count = torch.zeros_like(deltas[0])
    for mask in changed:
        count += mask
    return changed, count
