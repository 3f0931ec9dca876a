"""How much each model counts in an average: weights of a window, oldest first. Numbers only, in float64.

Every function returns weights that add up to 1, up to rounding. ``schedule_of`` reads a schedule as it is written:

    uniform, swa, warm   1 / n                    Wortsman et al. 2022, Izmailov et al. 2018, Rame et al. 2024
    lawa:K               uniform over the last K  Kaddour 2022 (2209.14981)
    linear               (k + 1) / (1 + .. + n)   Li et al. 2025
    ema:DECAY            e <- DECAY e + (1 - DECAY) x
    1-sqrt, cosine       a learning rate that decays over the window (``decayed``)
    decay:F1,F2,..       any other: what the learning rate falls to at each model behind the first
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = [
    "NAMES", "SHAPES", "Schedule", "by_counts", "decayed", "ema", "linear", "normalized", "schedule_of",
    "shaped", "uniform",
]  # fmt: skip

SHAPES: dict[str, Callable[[float], float]] = {
    "1-sqrt": lambda t: 1 - math.sqrt(t),
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}
"""Learning rates over a window, 1 at t = 0 and 0 at t = 1. That of a straight line gives equal weights: ``uniform``."""


@dataclass(frozen=True)
class Schedule:
    """A schedule by name.

    Attributes:
        text:    as it was written.
        weights: makes the weights of n models, oldest first; ValueError where it is none for so many.
        last:    of how many models at the end it is; None for all.
    """

    text: str
    weights: Callable[[int], list[float]]
    last: int | None = None


def uniform(n: int) -> list[float]:
    """Return ``1 / n`` for each: model soups (arXiv 2203.05482), SWA (1803.05407), WARM (2401.12187)."""
    return [1 / n] * n


def linear(n: int) -> list[float]:
    """Return weights that grow by equal steps, ``(k + 1) / (1 + 2 + .. + n)``: the WMA of arXiv 2505.12082."""
    return normalized([float(k + 1) for k in range(n)])


def ema(n: int, decay: float) -> list[float]:
    """Return ``decay^(n-1)``, then ``(1 - decay) decay^(n-1-k)``: an exponential average that began as the first model.

    It is ``e_0 = x_0``, then ``e_k = decay * e_{k-1} + (1 - decay) * x_k``.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the decay of an exponential average is {decay:g}; expected a number in [0, 1)")
    weights = [1.0][:n]
    for _ in range(1, n):
        weights = [*(decay * weight for weight in weights), 1 - decay]
    return weights


def decayed(factors: Sequence[float]) -> list[float]:
    """Return the weights with which an average does what a decay of the learning rate would have done.

    Between model k-1 and model k a run at a constant rate took the step ``g_k``. Had its rate been ``factors[k-1]``
    times as much there, it would have ended at ``x_0 + sum_k factors[k-1] g_k``, which is the average with the weights
    ``1 - f_1, f_1 - f_2, .., f_{n-2} - f_{n-1}, f_{n-1}`` (Tian et al. 2025, WSM, arXiv 2507.17634).

    Args:
        factors: n - 1 numbers for n models, from 1 down to 0, none larger than the one before.
    """
    steps = [1.0, *factors, 0.0]
    if any(not b <= a for a, b in itertools.pairwise(steps)):
        shown = ", ".join(f"{factor:g}" for factor in factors)
        raise ValueError(f"the factors of a decay are {shown}; expected numbers from 1 down to 0, none rising")
    return [a - b for a, b in itertools.pairwise(steps)]


def shaped(n: int, shape: Callable[[float], float]) -> list[float]:
    """Return ``decayed`` of a shape over a window: its values at ``1/n .. (n-1)/n``."""
    return decayed([shape(k / n) for k in range(1, n)])


def by_counts(counts: Sequence[float]) -> list[float]:
    """Return ``counts[k] / sum(counts)``: FedAvg, by the samples of each client (McMahan et al. 2017, 1602.05629)."""
    if any(not (math.isfinite(count) and count >= 0) for count in counts) or not any(counts):
        raise ValueError(f"the counts are {', '.join(f'{c:g}' for c in counts)}; expected numbers >= 0, one above")
    return normalized(counts)


def normalized(weights: Sequence[float]) -> list[float]:
    """Return ``weights[k] / sum(weights)``; ValueError where they are no numbers or cancel."""
    total = math.fsum(weights)
    if not math.isfinite(total) or abs(total) <= 1e-7 * math.fsum(map(abs, weights)):
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise ValueError(f"the weights are {shown}; expected finite numbers that do not cancel")
    return [weight / total for weight in weights]


def schedule_of(text: str) -> Schedule:
    """Read a schedule: ``NAME`` or ``NAME:VALUE``, as at the top of this module.

    Raises:
        ValueError: there is no such schedule, or its value is none.
    """
    name, colon, value = text.strip().partition(":")
    if name in _PLAIN and not colon:
        return Schedule(text, _PLAIN[name])
    if name in SHAPES and not colon:
        return Schedule(text, lambda n: shaped(n, SHAPES[name]))
    if name not in ("ema", "lawa", "decay"):
        raise ValueError(f"{text!r} is no schedule; expected {', '.join(NAMES)}")
    try:
        numbers = [float(number) for number in value.split(",")]
    except ValueError:
        numbers = []
    if name == "decay" and numbers:
        return Schedule(text, lambda n: _given(numbers, n), len(numbers) + 1)
    if name == "ema" and len(numbers) == 1 and 0 <= numbers[0] < 1:
        return Schedule(text, lambda n: ema(n, numbers[0]))
    if name == "lawa" and len(numbers) == 1 and numbers[0] >= 1 and numbers[0].is_integer():
        return Schedule(text, uniform, int(numbers[0]))
    raise ValueError(f"{text!r} is no schedule; expected {_VALUES[name]}")


def _given(factors: Sequence[float], n: int) -> list[float]:
    if n != len(factors) + 1:
        raise ValueError(f"{len(factors)} factors of a decay are for {len(factors) + 1} models; there are {n}")
    return decayed(factors)


_PLAIN: dict[str, Callable[[int], list[float]]] = {
    "uniform": uniform, "swa": uniform, "warm": uniform, "linear": linear,
}  # fmt: skip
_VALUES = {
    "ema": "ema:DECAY with a number in [0, 1), such as ema:0.9",
    "lawa": "lawa:K with the number of last models, such as lawa:5",
    "decay": "decay:F1,F2,.. with a factor for each model behind the first, such as decay:0.8,0.4,0.1",
}
NAMES = (*_PLAIN, *SHAPES, "ema:DECAY", "lawa:K", "decay:F1,F2,..")
"""How schedules are written."""
