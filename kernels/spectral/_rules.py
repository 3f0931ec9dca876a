r"""What a spectral map does to singular values. Every rule here keeps the first k and sets the rest to one value c:

    X' = c P + sum_{i < k} (s_i - c) u_i v_i^T,    P = U V^T

so that a route needs the polar factor P, the nuclear norm <P, X> and k + 1 leading triplets, not the whole SVD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """Keep ``k`` leading singular values, set the others to ``value``. ``margin`` and ``noise`` as in ``Info``."""

    k: int
    value: float
    margin: float | None = None
    noise: float | None = None


class Rule(Protocol):
    """A map of the spectrum."""

    def cut(self, values: Tensor, nuclear: float, size: int, complete: bool = False) -> Cut | None:
        """Return where to cut; None: more values are needed.

        Args:
            values:   leading singular values, float64 on the host.
            nuclear:  sum of all.
            size:     number of all, null ones included.
            complete: ``values`` are all that are not null.
        """


Rules = Sequence[Rule]
"""One for each matrix of a batch; they differ in what they know of the matrix, not in kind."""


def found(cut: Cut | None) -> Cut:
    """Return the cut of a full spectrum, which every rule finds."""
    assert cut is not None
    return cut


class Unit:
    """Every singular value becomes 1: the polar factor."""

    def cut(self, values: Tensor, nuclear: float, size: int, complete: bool = False) -> Cut:
        return Cut(0, 1.0)


@dataclass(frozen=True)
class Mean:
    """Every singular value becomes their mean. ``floor``: the spectral norm of rounding noise."""

    floor: float = 0.0

    def cut(self, values: Tensor, nuclear: float, size: int, complete: bool = False) -> Cut:
        return Cut(0, nuclear / size, noise=_noise(values, 0, nuclear, size, complete, self.floor))


@dataclass(frozen=True)
class Boost:
    """Singular values are raised to the first at which their cumulated sum reaches ``beta`` of the total.

    ``floor``: the spectral norm of rounding noise.
    """

    beta: float
    floor: float = 0.0

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
        leading = float(totals[k - 1]) if k else 0.0
        margin = min(abs(float(totals[k]) - target), target - leading if k else float("inf")) / nuclear
        return Cut(k, float(values[k]), margin, _noise(values, k, nuclear - leading, size, complete, self.floor))


def noise_floors(noise: float | Sequence[float], shape: Sequence[int]) -> list[float]:
    """Return the spectral norm of a matrix of independent errors with standard deviation ``noise``.

    One for each matrix of a tensor [..., m, n], in row-major order.
    """
    count = math.prod(shape[:-2])
    each = list(noise) if isinstance(noise, Sequence) else [noise] * count
    if len(each) != count:
        raise ValueError(f"noise has {len(each)} values; expected one for each of {count} matrices, or one for all")
    for value in each:
        if not value >= 0:
            raise ValueError(f"noise is {value}; expected a standard deviation >= 0")
    return [value * sum(map(math.sqrt, shape[-2:])) for value in each]


def _noise(values: Tensor, k: int, rest: float, size: int, complete: bool, floor: float) -> float | None:
    """Return the share of the singular values behind the first k that are at most ``floor``; ``rest`` is their sum.

    Where only leading ones are known it is a lower bound: no more than ``rest / floor`` of them exceed the floor.
    """
    if floor == 0:
        return None
    if complete:
        return float((values[k:] <= floor).double().mean())
    return max(0.0, 1 - rest / floor / (size - k))
