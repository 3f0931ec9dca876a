"""Which checkpoints an average takes, in which order: names and patterns on one side, a list of models on the other."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..arguments import whole
from ..checkpoint.distributed import SEPARATOR, split_key
from ..checkpoint.foreign import holds_weights
from ..errors import InvalidInput, Problem

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Window:
    """The models of an average, oldest first.

    Attributes:
        models: folders, hub ids or references of a recipe.
        notes:  what the user should know of the choice, one sentence each.
    """

    models: tuple[str, ...]
    notes: tuple[str, ...] = ()


def window_of(
    names: Sequence[str],
    *,
    paired: bool = False,
    last: int | None = None,
    every: int | None = None,
    start: int | None = None,
    stop: int | None = None,
) -> Window:
    """Return the models that ``names`` mean.

    Names that differ only in numbers (``run/checkpoint-500``) are a series: it is put in the order of its numbers, of
    which the last that differs is the step. Other names stay in the order given, and so does everything that is
    ``paired`` with weights.

    Args:
        names:  folders, hub ids, or patterns (``run/checkpoint-*``), which stand for the folders with weights in them;
                with the key of the model, where they are states of training (``run/step-*::model``).
        paired: weights of the same order are given.
        start, stop: the first and last step that are taken.
        every:  keep each so-many-th, counted from the last one.
        last:   keep so many at the end. ``start`` and ``stop`` come first, then ``every``, then this.
    Raises:
        InvalidInput: a pattern without folders, a model given twice, a step asked of names that have none.
    """
    problems = [*whole("last", last), *whole("every", every), *whole("start", start, 0), *whole("stop", stop, 0)]
    if problems:
        raise InvalidInput(problems)
    found = [model for name in names for model in _expanded(name, problems)]
    times = Counter(map(os.path.normpath, found))
    twice = {model for model in found if times[os.path.normpath(model)] > 1}
    remedy = "name it once, and give it its weight with --weights"
    problems += [Problem(model, "is given twice", remedy) for model in sorted(twice)]
    if paired and (last, every, start, stop) != (None, None, None, None):
        what = "--last, --every, --from and --to choose among checkpoints, which weights or counts are given for"
        problems.append(Problem("options", what, "name the checkpoints that are meant"))
    if not names:
        problems.append(Problem("checkpoints", "there are none", "give at least one"))
    steps = _steps(found)
    if (start, stop) != (None, None) and steps is None and not problems:
        what = f"the names of {', '.join(found[:3])} differ in more than numbers, so that none of them is a step"
        problems.append(Problem("--from, --to", what, "name the checkpoints that are meant"))
    if problems:
        raise InvalidInput(problems)
    notes = []
    if steps is not None:
        ordered = sorted(range(len(found)), key=lambda i: _numbers(found[i]))
        if paired and ordered != sorted(ordered):
            notes.append("weights and counts go with the checkpoints in the order given, not in that of their numbers")
        elif not paired:
            found, steps = [found[i] for i in ordered], [steps[i] for i in ordered]
            kept = [i for i, step in enumerate(steps) if (start or 0) <= step and (stop is None or step <= stop)]
            if not kept:
                what = f"none of the steps {', '.join(map(str, steps))} is among them"
                raise InvalidInput([Problem("--from, --to", what)])
            found = [found[i] for i in kept]
    found = found[:: -(every or 1)][::-1]
    if last is not None and last > len(found):
        notes.append(f"the last {last} checkpoints are asked for, and there are {len(found)}: all are taken")
    return Window(tuple(found[-last:] if last else found), tuple(notes))


def _expanded(name: str, problems: list[Problem]) -> list[str]:
    """Return the folders that a pattern stands for, in the order of their numbers; a name that is none as it is."""
    if os.path.exists(os.path.expanduser(name)) or not glob.has_magic(name):
        return [name]
    pattern, key = split_key(os.path.expanduser(name))
    found = [path for path in glob.glob(pattern) if os.path.isdir(path)]
    holding = [path for path in found if holds_weights(path)]
    if found and not holding:
        # What is wrong with them, the planner says.
        return sorted(found, key=_numbers)
    if not holding:
        problems.append(Problem(name, "matches no folder", "check the pattern"))
    ordered = sorted(holding, key=_numbers)
    return ordered if key is None else [f"{path}{SEPARATOR}{key}" for path in ordered]


def _numbers(path: str) -> list[int | str]:
    """Return what puts paths into the order of their numbers: 500 before 1000."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]


def _steps(paths: Sequence[str]) -> list[int] | None:
    """Return the step of each path of a series, or None where their names differ in more than numbers."""
    if len({_NUMBER.sub("#", path) for path in paths}) != 1:
        return None
    numbers = [[int(number) for number in _NUMBER.findall(path)] for path in paths]
    if not numbers[0]:
        return None
    differing = [i for i, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
    place = differing[-1] if differing else -1
    return [each[place] for each in numbers]
