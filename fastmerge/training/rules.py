r"""How an average meets the next weights of a run: the job that one step is for each tensor.

Running averages (``ema``, ``swa``, ``power``) keep one tensor ``s``. They begin as the first weights, ``s = x_0``, and

    s = s + (v x_n - v s),    v = 1 - decay_n rounded to float32

in float32: both products are rounded, then their difference, then the sum. It is ``decay_n s + (1 - decay_n) x_n`` in
a form whose two factors add up to 1 exactly, so that the average of weights that stay the same is those weights.
``window`` keeps ``s = s + w_n x_n``, and ``lawa`` the last weights themselves.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .. import schedules
from ..errors import InvalidInput, Problem
from ..kernels import SumJob

__all__ = ["Rule", "ema", "lawa", "power", "rule_of", "rules_of", "swa", "window"]

Sum = tuple[Sequence[Tensor], Sequence[float]]
"""Tensors and the weights of their sum."""


@dataclass(frozen=True)
class Rule(ABC):
    """How weights are averaged.

    Attributes:
        text:  names the rule with all of its numbers: a state goes on under the same text alone.
        start: the first step that counts.
        every: take each so-many-th step from there.
    """

    text: str
    start: int = 0
    every: int = 1

    # How many tensors are kept for each one of the model, and whether they have its dtype: else float32.
    slots = 1
    own_dtype = False

    @property
    def name(self) -> str:
        """What an average under the rule is called where no name is given."""
        return self.text

    def takes(self, step: int, count: int) -> bool:
        """Return whether the weights at ``step`` are taken in, ``count`` being taken so far."""
        return step >= self.start and (step - self.start) % self.every == 0

    @abstractmethod
    def meet(self, count: int, kept: Sequence[Tensor], value: Tensor) -> SumJob:
        """Return the job that takes in ``value``, the tensor ``count`` from 0, into one of ``kept``."""

    def result(self, count: int, kept: Sequence[Tensor]) -> Sum:
        """Return the sum that is the average of the ``count`` tensors so far."""
        return [kept[0]], [1.0]

    def why_not_yet(self, count: int) -> str | None:
        """Return why there is no average of so many tensors, or None."""
        return None if count else "no step was taken in so far"


@dataclass(frozen=True)
class _Running(Rule):
    share: Callable[[int], float] = field(kw_only=True)

    def meet(self, count: int, kept: Sequence[Tensor], value: Tensor) -> SumJob:
        share, state = self.share(count) if count else 1.0, kept[0]
        if share == 1:
            return SumJob(state, [value], [1.0])
        return SumJob(state, [value, state, state], [share, -share, 1.0])


@dataclass(frozen=True)
class _Last(Rule):
    k: int = field(kw_only=True)

    own_dtype = True

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.k

    def meet(self, count: int, kept: Sequence[Tensor], value: Tensor) -> SumJob:
        return SumJob(kept[count % self.k], [value], [1.0])

    def result(self, count: int, kept: Sequence[Tensor]) -> Sum:
        n = min(count, self.k)
        return [kept[i % self.k] for i in range(count - n, count)], schedules.uniform(n)


@dataclass(frozen=True)
class _Window(Rule):
    weights: dict[int, float] = field(kw_only=True)

    @property
    def name(self) -> str:
        return f"window:{min(self.weights)}-{max(self.weights)}"

    def takes(self, step: int, count: int) -> bool:
        due = list(self.weights)[count] if count < len(self.weights) else math.inf
        if step > due:
            what = f"step {due} is one of its steps, and was not averaged before step {step}"
            raise InvalidInput([Problem(self.text, what, "call update at every step of the window")])
        return step == due

    def meet(self, count: int, kept: Sequence[Tensor], value: Tensor) -> SumJob:
        weight = list(self.weights.values())[count]
        return SumJob(kept[0], [kept[0], value], [1.0, weight]) if count else SumJob(kept[0], [value], [weight])

    def why_not_yet(self, count: int) -> str | None:
        left = len(self.weights) - count
        return f"{left} of the {len(self.weights)} steps of its window are still to come" if left else None


def ema(decay: float, *, warmup: bool = False, start: int = 0, every: int = 1) -> Rule:
    """Return the exponential average: ``s = decay s + (1 - decay) x_n``, from ``s = x_0``.

    Args:
        decay:  in [0, 1).
        warmup: take ``min(decay, (1 + n) / (10 + n))`` at tensor n from 0, as ``tf.train.ExponentialMovingAverage`` and
                diffusers' ``EMAModel`` do, so that a high decay forgets the first weights.
        start, every: which steps count.
    """
    if not 0 <= decay < 1:
        raise InvalidInput([Problem("decay", f"is {decay}; expected a number in [0, 1)")])
    text = f"ema:{decay!r}" + (" with warm-up" if warmup else "")
    return _taken(text, start, every, lambda n: 1 - (min(decay, (1 + n) / (10 + n)) if warmup else decay))


def power(gamma: float, *, start: int = 0, every: int = 1) -> Rule:
    """Return the power-function average, whose decay grows: ``decay_n = (1 - 1 / (n + 1)) ** (gamma + 1)`` at n from 0.

    The weight of ``x_n`` is about proportional to ``n ** gamma``: 0 gives ``swa`` (Karras et al. 2024, arXiv
    2312.02696, section 3, which keeps 6.94 and 16.97 side by side).
    """
    if not (gamma > -1 and math.isfinite(gamma)):
        raise InvalidInput([Problem("gamma", f"is {gamma}; expected a number above -1")])
    return _taken(f"power:{gamma!r}", start, every, lambda n: 1 - (1 - 1 / (n + 1)) ** (gamma + 1))


def swa(*, start: int = 0, every: int = 1) -> Rule:
    """Return the running mean: ``s = n / (n + 1) s + 1 / (n + 1) x_n`` (Izmailov et al. 2018, arXiv 1803.05407)."""
    return _taken("swa", start, every, lambda n: 1 / (n + 1))


def lawa(k: int, *, start: int = 0, every: int = 1) -> Rule:
    """Return the mean of the last ``k`` weights that were taken, of fewer at the beginning (Kaddour 2022, 2209.14981).

    They are kept as they are, so that the average has the bits of ``fastmerge average --schedule lawa:k`` over
    checkpoints of the same steps. Memory: ``k`` times that of the weights.
    """
    if k < 1:
        raise InvalidInput([Problem("k", f"is {k}; expected 1 or more")])
    return _Last(_text(f"lawa:{k}", start, every), start, every, k=k)


def window(steps: Sequence[int], schedule: str | Sequence[float] = "uniform") -> Rule:
    """Return the average of the weights at known steps: ``s = w_0 x_0``, then ``s = s + w_n x_n``.

    Its bits are those of ``fastmerge average`` over checkpoints of these steps. It is there once the last step was
    taken in. ``1-sqrt`` and ``cosine`` stand for a decay of the learning rate over the window.

    Args:
        steps:    of the window, rising, such as ``range(9000, 10001, 100)``.
        schedule: as in ``fastmerge.schedules.schedule_of``, or a weight for each step, divided by their sum.
    """
    steps = [int(step) for step in steps]
    if not steps or steps[0] < 0 or any(b <= a for a, b in itertools.pairwise(steps)):
        shown = ", ".join(map(str, steps[:8]))
        raise InvalidInput([Problem("steps", f"are {shown}; expected rising numbers from 0", "give one at least")])
    try:
        if isinstance(schedule, str):
            found = schedules.schedule_of(schedule)
            steps = steps[-(found.last or len(steps)) :]
            weights = found.weights(len(steps))
        else:
            weights = schedules.normalized(schedule)
            if len(weights) != len(steps):
                raise ValueError(f"{len(weights)} weights are given for {len(steps)} steps")
    except ValueError as error:
        raise InvalidInput([Problem("schedule", str(error))]) from None
    table = dict(zip(steps, weights, strict=True))
    text = ", ".join(f"{step}: {weight!r}" for step, weight in table.items())
    return _Window(f"window {{{text}}}", weights=table)


Schedule = str | Rule


def rule_of(rule: Schedule) -> Rule:
    """Read a rule: ``swa``, ``ema:DECAY``, ``power:GAMMA``, ``lawa:K``; a rule stays as it is."""
    if isinstance(rule, Rule):
        return rule
    name, colon, value = rule.strip().partition(":")
    try:
        if name == "swa" and not colon:
            return swa()
        if name == "lawa":
            return lawa(int(value))
        if name in ("ema", "power"):
            return (ema if name == "ema" else power)(float(value))
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
    raise InvalidInput([Problem("schedule", f"is {rule!r}; expected swa, ema:DECAY, power:GAMMA, lawa:K or a rule")])


def rules_of(schedule: Schedule | Sequence[Schedule] | Mapping[str, Schedule]) -> dict[str, Rule]:
    """Return the rules of one schedule or several, by the names of their averages."""
    if isinstance(schedule, str | Rule):
        schedule = [schedule]
    if isinstance(schedule, Mapping):
        rules = {name: rule_of(rule) for name, rule in schedule.items()}
    else:
        found = [rule_of(rule) for rule in schedule]
        rules = {rule.name: rule for rule in found}
        if len(rules) < len(found):
            raise InvalidInput([Problem("schedule", "names a rule twice", "leave one out, or give names")])
    if not rules:
        raise InvalidInput([Problem("schedule", "is empty", "name a rule, such as ema:0.999")])
    return rules


def _taken(text: str, start: int, every: int, share: Callable[[int], float]) -> Rule:
    return _Running(_text(text, start, every), start, every, share=share)


def _text(text: str, start: int, every: int) -> str:
    if start < 0 or every < 1:
        raise InvalidInput([Problem("start, every", f"are {start} and {every}; expected 0 and 1, or more")])
    return text + (f" from {start}" if start else "") + (f" every {every}" if every != 1 else "")
