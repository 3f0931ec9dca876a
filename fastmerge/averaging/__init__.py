"""Averages of checkpoints: which ones, how much each counts, and the recipe that makes the average."""

from __future__ import annotations

from .greedy import Greedy, GreedySoup, Trial
from .recipe import Average, average_of
from .run import average, greedy_soup
from .window import Window, window_of

__all__ = [
    "Average", "Greedy", "GreedySoup", "Trial", "Window", "average", "average_of", "greedy_soup", "window_of",
]  # fmt: skip
