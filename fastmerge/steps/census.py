"""Censuses: surveys of all tensors of a model together, for a threshold or a norm that is one for all of them."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import kernels
from ..kernels import Boundary
from .apply import Apply
from .method import Group, Method, Solve
from .source import Source
from .survey import Survey, bins, break_indices, equal_by_grid, histograms


@dataclass(frozen=True)
class Census(Survey):
    """A survey of every tensor of a model that asks for it; the answer is the sum of theirs, the same for all.

    Tensors that ask for one census go on together: to the same next one, or to none. A tensor that is merged by itself
    is a model of its own.

    Attributes:
        key:    its name; censuses of one name are one. Parameters that it depends on are part of it.
        survey: of this tensor.
        add:    adds up two answers; the order must not matter.
        group:  of this tensor; ``group.censuses`` holds the answer once it was taken.
    """

    key: str
    survey: Survey
    add: Callable[[Any, Any], Any]
    group: Group

    def run(self, source: Source) -> Any:
        return self.answer if self.known else self.survey.run(source)

    @property
    def known(self) -> bool:
        return self.key in self.group.censuses

    @property
    def answer(self) -> Any:
        return self.group.censuses[self.key]


class Round:
    """One round over tensors of a model: the next census that each of them asks for. Threads may share it.

    Attributes:
        found: the sums of the answers, by the names of the censuses.
        asked: the tensors that asked for them.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.asked: dict[str, list[str]] = {}
        self._adds: dict[str, Callable[[Any, Any], Any]] = {}
        self._lock = threading.Lock()

    def ask(self, method: Method, group: Group, source: Source) -> None:
        """Survey one tensor."""
        step = method.merge(group)
        census = None if isinstance(step, Apply) else _first_unknown(step, source)
        if census is None:
            return
        part = census.survey.run(source)
        with self._lock:
            self._take(census.key, part, [group.name], census.add)

    @property
    def parts(self) -> dict[str, tuple[Any, list[str], Callable[[Any, Any], Any]]]:
        """By the name of a census: the sum of the answers, the tensors that asked, and what adds up two answers."""
        return {key: (value, self.asked[key], self._adds[key]) for key, value in self.found.items()}

    def add(self, parts: dict[str, tuple[Any, list[str], Callable[[Any, Any], Any]]]) -> None:
        """Add the ``parts`` of a round over other tensors."""
        for key, part in parts.items():
            self._take(key, *part)

    def _take(self, key: str, part: Any, names: Sequence[str], add: Callable[[Any, Any], Any]) -> None:
        self.found[key] = add(self.found[key], part) if key in self.found else part
        self.asked.setdefault(key, []).extend(names)
        self._adds[key] = add


def take_censuses(names: Sequence[str], take: Callable[[Sequence[str], dict[str, Any]], Round]) -> dict[str, Any]:
    """Return what all censuses found that the methods of these tensors ask for, by name.

    ``take(names, found)`` is called to survey tensors that know what was found so far.
    """
    found: dict[str, Any] = {}
    groups = [list(names)] if names else []
    while groups:
        # What one tensor asks for next, all of its group do.
        probe = {name for asked in take([group[0] for group in groups], found).asked.values() for name in asked}
        goes_on = [name for group in groups if group[0] in probe for name in group]
        if not goes_on:
            break
        taken = take(goes_on, found)
        found |= taken.found
        groups = list(taken.asked.values())
    return found


def _first_unknown(step: Solve, source: Source) -> Census | None:
    """Return the first census that a method asks for and whose answer is not known yet."""
    try:
        survey = next(step)
        while not isinstance(survey, Census) or survey.known:
            survey = step.send(survey.run(source))
    except StopIteration:
        return None
    step.close()
    return survey


@dataclass(frozen=True)
class MagnitudeCounts(Survey):
    """Per delta, the number of elements by the upper 15 bits of their magnitude: int64 [models, 2**15].

    With ``prefixes``, one per model, of those that have these upper bits by the lower 16: int64 [models, 2**16].
    """

    models: int
    prefixes: tuple[int, ...] = ()

    def run(self, source: Source) -> np.ndarray:
        return histograms(source, list(range(self.models)), 1 if self.prefixes else 0, list(self.prefixes))


@dataclass(frozen=True)
class EqualMagnitudes(Survey):
    """Per delta, how many magnitudes equal a threshold (float32 bits), by the name of the tensor."""

    name: str
    thresholds: tuple[int, ...]

    def run(self, source: Source) -> dict[str, tuple[int, ...]]:
        models = range(len(self.thresholds))
        total = np.zeros(len(models), np.int64)
        for chunk in source.chunks():
            total += equal_by_grid(chunk, models, self.thresholds).sum(0)
        return {self.name: tuple(source.reduce(total).tolist())}


@dataclass(frozen=True)
class BreakIndices(Survey):
    """Per delta, the index below which exactly ``keep[k]`` of its magnitudes equal its threshold; 0 keeps none."""

    thresholds: tuple[int, ...]
    keep: tuple[int, ...]

    def run(self, source: Source) -> list[int]:
        models = [k for k, count in enumerate(self.keep) if count]
        found = (
            break_indices(source, models, [self.thresholds[k] for k in models], [self.keep[k] for k in models])
            if models
            else []
        )
        indices = dict(zip(models, found, strict=True))
        return [indices.get(k, 0) for k in range(len(self.keep))]


Ranks = Callable[[int, int], int]
"""The rank of an element, from 1 for the largest magnitude, given the model and the number of its elements."""


def model_thresholds(
    group: Group, label: str, rank_of: Ranks
) -> Generator[Survey, Any, tuple[list[int], list[int], list[int]]]:
    """Find, per delta, the magnitude that has a rank among those of all tensors of the model together.

    ``label`` says what the ranks depend on: tensors that have the same one belong together. Two readings of the model.

    Returns per delta the magnitude (float32 bits), the rank among those that equal it, and how many do.
    """
    counts = yield Census(f"magnitudes {label}", MagnitudeCounts(group.models), operator.add, group)
    if not counts[0].any():
        return [0] * group.models, [0] * group.models, [0] * group.models
    ranks = [rank_of(k, int(row.sum())) for k, row in enumerate(counts)]
    highs, ranks, _ = bins(counts, ranks)
    lower = MagnitudeCounts(group.models, tuple(highs))
    counts = yield Census(f"lower magnitudes {label}", lower, operator.add, group)
    lows, ranks, equal = bins(counts, ranks)
    return [(high << 16) | low for high, low in zip(highs, lows, strict=True)], ranks, equal


def model_boundaries(group: Group, label: str, rank_of: Ranks) -> Generator[Survey, Any, list[Boundary]]:
    """Return, per delta, this tensor's boundary of exactly so many largest magnitudes of the whole model.

    Of equal magnitudes the first ones are kept: tensors by name, then elements by index. Two readings of the model, and
    where equal magnitudes lie on both sides of a boundary a third one.
    """
    thresholds, ranks, equal = yield from model_thresholds(group, label, rank_of)
    if ranks == equal:
        return [Boundary(threshold, kernels.ALL_EQUAL) for threshold in thresholds]
    survey = EqualMagnitudes(group.name, tuple(thresholds))
    counts = yield Census(f"equal magnitudes {label}", survey, operator.or_, group)
    keep = []
    for k, rank in enumerate(ranks):
        before = sum(counts[name][k] for name in counts if name < group.name)
        keep.append(max(0, min(rank - before, counts[group.name][k])))
    breaks = yield BreakIndices(tuple(thresholds), tuple(keep))
    return [Boundary(threshold, index) for threshold, index in zip(thresholds, breaks, strict=True)]
