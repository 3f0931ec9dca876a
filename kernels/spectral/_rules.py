r"""What a spectral map does to singular values. Every rule here keeps the first k and sets the rest to one value c:

    X' = c P + sum_{i < k} (s_i - c) u_i v_i^T,    P = U V^T

so that a route needs the polar factor P, the nuclear norm <P, X> and k + 1 leading triplets, not the whole SVD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """Keep ``k`` leading singular values, set the others to ``value``. ``margin`` as in ``Info``."""

    k: int
    value: float
    margin: float | None = None


class Rule(Protocol):
    """A map of the spectrum. ``flat``: k is always 0, no leading triplet is needed."""

    flat: bool

    def cut(self, values: Tensor, nuclear: float, size: int, complete: bool = False) -> Cut | None:
        """Return where to cut; None: more values are needed.

        Args:
            values:   leading singular values, float64 on the host.
            nuclear:  sum of all.
            size:     number of all, null ones included.
            complete: ``values`` are all that are not null.
        """


def found(cut: Cut | None) -> Cut:
    """Return the cut of a full spectrum, which every rule finds."""
    assert cut is not None
    return cut


class Unit:
    """Every singular value becomes 1: the polar factor."""

    flat = True

    def cut(self, values: Tensor, nuclear: float, size: int, complete: bool = False) -> Cut:
        return Cut(0, 1.0)


class Mean:
    """Every singular value becomes their mean."""

    flat = True

    def cut(self, values: Tensor, nuclear: float, size: int, complete: bool = False) -> Cut:
        return Cut(0, nuclear / size)


@dataclass(frozen=True)
class Boost:
    """Singular values are raised to the first at which their cumulated sum reaches ``beta`` of the total."""

    beta: float
    flat = False

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}; expected a share in [0, 1]")

    def cut(self, values: Tensor, nuclear: float, size: int, complete: bool = False) -> Cut | None:
        totals = values.cumsum(0)
        target = self.beta * nuclear
        reached = (totals >= target).nonzero()
        if not len(reached) and not complete:
            return None
        # Where rounding keeps the sum of all values below beta = 1, the last one is the cut and nothing changes.
        k = int(reached[0]) if len(reached) else len(values) - 1
        below = target - (float(totals[k - 1]) if k else 0.0)
        return Cut(k, float(values[k]), min(abs(float(totals[k]) - target), below if k else float("inf")) / nuclear)
