"""Surveys of a tensor of which several ranks have parts: each one surveys its own, and all get the sums."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np

from .parts import Part, whole_of
from .ranks import ALONE, Ranks


class Totals:
    """Adds up tables of surveys over the ranks that hold parts of a tensor. Any worker may wait here for the others.

    All ranks survey the tensors that they share in the same order, so that the first one that is not done waits for
    nobody who waits.
    """

    def __init__(self, ranks: Ranks = ALONE):
        self._ranks = ranks
        self._stopped = False

    def stop(self) -> None:
        """Let nobody wait any more: this rank failed, and others may wait for what it would have done."""
        self._stopped = True

    def adder(self, part: Part) -> Callable[[np.ndarray], np.ndarray]:
        """Return what adds up the tables of one part to those of the tensor, one after the other."""
        name, turns = whole_of(part).name, itertools.count()

        def add(table: np.ndarray) -> np.ndarray:
            def combine(values: list[bytes]) -> bytes:
                return functools.reduce(np.add, (np.frombuffer(value, table.dtype) for value in values)).tobytes()

            key = f"{name}/{next(turns)}"
            total = self._ranks.agree_among(part.holders, key, table.tobytes(), combine, lambda: self._stopped)
            return np.frombuffer(bytearray(total), table.dtype).reshape(table.shape)

        return add if len(part.holders) > 1 and not part.apart else np.asarray
