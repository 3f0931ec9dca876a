"""Whether values that another tool wrote are those of a merge, but for how that tool rounds.

A tool that computes in 16 bits rounds every intermediate. Each rounding errs by at most u times what it rounds, so a
sum of N weighted inputs, and deltas that are weighted, summed, scaled and added to a base, err by at most

    (N + 2) u sum_i |w_i input_i| g        and        2 u |merged| + (2 N + 4) u g sum_i |w_i delta_i|

with u the unit roundoff of the tool's arithmetic and g what the sum is multiplied by: lambda, 1 over the weights where
these are normalized, 1 over the density where a method rescales. The file adds u' |merged|. In float32, u is taken as
2**-20: norms and dot products there depend on the order in which they are summed.

Methods that choose have a second reason to differ: of equal magnitudes at a threshold a tool keeps which it likes, and
a sum that rounds to zero elects another sign. An element hangs on such a choice if a delta has the one magnitude (with
two thresholds: one of two) that this model's other differing elements have, or if weighted deltas cancel up to
rounding. No choice leads farther from the base than all deltas together.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..steps.inputs import Inputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SMALLEST_ROUNDOFF = 2.0**-20

# Models of which every subset is looked at for deltas that cancel.
MOST_MODELS = 8

# Elements that are kept to be judged together; more of them are no choice among equals.
MOST_HANGING = 1 << 18


@dataclass(frozen=True)
class Tolerance:
    """How far a tool's rounding may lead from the merge of one tensor.

    Attributes:
        arithmetic: unit roundoff of the tool's arithmetic.
        stored:     unit roundoff of the file's dtype.
        weights:    of the inputs without the base.
        gain:       what their sum is multiplied by.
    """

    arithmetic: float
    stored: float
    weights: tuple[float, ...]
    gain: float

    @classmethod
    def of(cls, values: Mapping[str, Any], models: int, arithmetic: torch.dtype, stored: torch.dtype) -> Tolerance:
        """Return the tolerance by a method's ``values``; ``models`` counts the inputs without the base."""
        import torch

        given = _each(values.get("weight", 1.0), models)
        gain = abs(float(values.get("lambda") or 1.0))
        if values.get("normalize"):
            # Where signs are elected, the weights of as few as one model divide.
            divisors = [abs(sum(given)), *(given if "density" in values else ())]
            gain /= min((abs(d) for d in divisors if d), default=1.0)
        gain /= max(min((d for d in _each(values.get("density") or 1.0, models) if d), default=1.0), 1e-3)
        roundoff = max(torch.finfo(arithmetic).eps / 2, SMALLEST_ROUNDOFF)
        return cls(roundoff, torch.finfo(stored).eps / 2, tuple(map(abs, given)), gain)

    def allows(self, found: Tensor, merged: Tensor, inputs: Inputs[Tensor]) -> Tensor:
        """Return which elements of ``found`` are within the rounding of ``merged`` (float32): bool."""
        import torch

        models = [tensor.float() for tensor in inputs.tensors]
        if inputs.base is not None:
            models = [tensor - inputs.base.float() for tensor in models]
        summed = torch.zeros_like(merged)
        for weight, tensor in zip(self.weights, models, strict=True):
            summed += weight * tensor.abs()
        if inputs.base is None:
            bound = (len(models) + 2) * self.arithmetic * self.gain * summed
        else:
            bound = 2 * self.arithmetic * merged.abs() + (2 * len(models) + 4) * self.arithmetic * self.gain * summed
        bound += self.stored * merged.abs()
        both_nan = found.isnan() & merged.isnan()
        return both_nan | (found == merged) | ((found.float() - merged).abs() <= bound)

    def reachable(self, found: Tensor, inputs: Inputs[Tensor]) -> Tensor:
        """Return which elements of ``found`` a choice of deltas could give: those not farther from the base than all.

        Four times as far, because what a method rescales by the norms of what it keeps may grow by more than the gain.
        """
        assert inputs.base is not None
        base = inputs.base.float()
        far = abs(base - base)
        for weight, tensor in zip(self.weights, inputs.tensors, strict=True):
            far += weight * (tensor.float() - base).abs()
        rounding = (self.stored + 2 * self.arithmetic) * base.abs()
        return (found.float() - base).abs() <= 4 * self.gain * (1 + self.stored) * far + rounding

    def deltas(self, inputs: Inputs[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return deltas as a tool computes them in ``dtype``, and their products with the weights: [N, n]."""
        import torch

        assert inputs.base is not None
        base = inputs.base.to(dtype)
        deltas = torch.stack([(tensor.to(dtype) - base).float() for tensor in inputs.tensors])
        return deltas, deltas * torch.tensor(self.weights).unsqueeze(1)


def _each(value: Any, models: int) -> list[float]:
    return [float(v) for v in value] if isinstance(value, tuple) else [float(value)] * models


@dataclass
class Choices:
    """Elements of one tensor that differ by more than rounding, with the deltas on which a method chose.

    Attributes:
        roundoff: of the tool's arithmetic.
        cuts:     thresholds of one delta: two, where the largest magnitudes are dropped, too.
        blocks:   deltas and weighted deltas, [N, n] each.
        count:    elements so far.
    """

    roundoff: float
    cuts: int = 1
    blocks: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    count: int = 0

    def add(self, deltas: Tensor, weighted: Tensor) -> None:
        self.count += deltas.shape[1]
        if self.count <= MOST_HANGING:
            self.blocks.append((deltas, weighted))

    def explain(self) -> bool:
        """True when every one of the elements hangs on a choice among equals."""
        import torch

        if self.count > MOST_HANGING:
            return False
        deltas, weighted = (torch.cat(side, 1) for side in zip(*self.blocks, strict=True))
        unexplained = ~_cancelling(weighted, 4 * self.roundoff)
        for row in (row for row in deltas.abs() for _ in range(self.cuts)):
            rest = row[unexplained & (row > 0)]
            if rest.numel():
                found, counts = rest.unique(return_counts=True)
                unexplained &= row != found[counts.argmax()]
        return not bool(unexplained.any())


def _cancelling(deltas: Tensor, tolerance: float) -> Tensor:
    """Return which columns have deltas, of some of the models, that cancel up to a tolerance."""
    import torch

    models, elements = deltas.shape
    found = torch.zeros(elements, dtype=torch.bool)
    for size in range(2, min(models, MOST_MODELS) + 1):
        for subset in itertools.combinations(range(min(models, MOST_MODELS)), size):
            part = deltas[list(subset)].double()
            found |= part.sum(0).abs() <= tolerance * part.abs().sum(0)
    return found
