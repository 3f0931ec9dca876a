"""Recipes of several documents: merges whose results other documents of the file use, by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint.hub_names import is_near
from ..errors import InvalidInput, Problem
from .document import read_documents
from .loading import load_document
from .types import Recipe


@dataclass(frozen=True)
class Pipeline:
    """The merges of a file, each behind those that it uses; most files have one.

    ``last`` is the recipe of the result: the document without a name, or the only one that no other uses. None where
    several are results, which then are all named.
    """

    steps: tuple[Recipe, ...]
    last: Recipe | None

    def is_result(self, step: Recipe) -> bool:
        """True for the last step, and for others whose results no step uses."""
        return step is self.last or not any(step.name in {m.path for m in other.models} for other in self.steps)

    @property
    def intermediates(self) -> tuple[Recipe, ...]:
        """The steps whose results are used, or kept beside the last one."""
        return tuple(step for step in self.steps if step is not self.last)

    def used_by(self, step: Recipe) -> tuple[Recipe, ...]:
        """Return the steps whose results a step uses."""
        names = {model.path for model in step.models}
        return tuple(other for other in self.steps if other.name in names and other is not step)


def load_pipeline(
    source: str | os.PathLike[str] | dict[str, Any],
    *,
    semantics: str | None = None,
    seed: int | None = None,
    name: str = "<recipe>",
    made: bool = False,
) -> Pipeline:
    """Read all documents of a recipe, as ``load`` reads one, and put them in order.

    ``name`` stands for a text in messages; ``made`` as in ``read_documents``.

    Raises:
        InvalidInput: every problem of every document; names that are missing, given twice or lead in a circle.
    """
    documents = read_documents(source, name, made)
    problems: list[Problem] = []
    notes: list[str] = []
    steps = []
    for document in documents:
        try:
            steps.append(load_document(document, semantics=semantics, seed=seed))
        except InvalidInput as error:
            problems += error.problems
            notes += error.notes
    if problems:
        raise InvalidInput(problems, notes)
    if len(steps) == 1:
        return Pipeline((steps[0],), steps[0])
    lines = [document.where() for document in documents]
    problems += _name_problems(steps, lines)
    if problems:
        raise InvalidInput(problems)
    return _ordered(steps)


def _name_problems(steps: Sequence[Recipe], lines: Sequence[str]) -> list[Problem]:
    unnamed = [line for step, line in zip(steps, lines, strict=True) if not step.name]
    problems = []
    if len(unnamed) > 1:
        what = f"{len(unnamed)} documents have no name, at {', '.join(unnamed)}"
        problems.append(Problem(unnamed[1], what, "give every document but the result a name:"))
    seen: dict[str, str] = {}
    for step, line in zip(steps, lines, strict=True):
        if step.name in seen and step.name:
            problems.append(Problem(line, f"the name {step.name!r} is given twice", "rename one of the documents"))
        elif step.name and (os.sep in step.name or step.name.startswith(".") or {"@", "+"} & set(step.name)):
            problems.append(Problem(line, f"{step.name!r} is no name for a folder", "use letters, digits, - and _"))
        seen[step.name] = line
    for step, line in zip(steps, lines, strict=True):
        for model in step.models:
            meant = next((name for name in seen if name and is_near(model.path, name)), None)
            if meant and model.path not in seen and not model.revision and not os.path.isdir(model.path):
                problems.append(Problem(line, f"uses {model.path!r}, which no document is named", f"write {meant}"))
    return problems


def _ordered(steps: Sequence[Recipe]) -> Pipeline:
    """Put every document behind those that it uses, else in the order of the file."""
    pipeline = Pipeline(tuple(steps), None)
    done: list[Recipe] = []
    waiting = list(steps)
    while waiting:
        ready = next((step for step in waiting if all(other in done for other in pipeline.used_by(step))), None)
        if ready is None:
            names = ", ".join(step.name or "the last document" for step in waiting)
            what = f"documents use each other in a circle: {names}"
            raise InvalidInput([Problem(waiting[0].where(), what, "break it")])
        waiting.remove(ready)
        done.append(ready)
    used = {other.name for step in steps for other in pipeline.used_by(step)}
    free = [step for step in done if step.name not in used]
    last = next((step for step in done if not step.name), free[0] if len(free) == 1 else None)
    if last is not None:
        done.remove(last)
        done.append(last)
    made: dict[str, Recipe] = {}
    for step in done:
        needed = [text for other in pipeline.used_by(step) for text in (*made[other.name].earlier, other.text)]
        made[step.name] = replace(step, earlier=tuple(dict.fromkeys(needed)))
    return Pipeline(tuple(made.values()), None if last is None else made[last.name])


def with_folders(step: Recipe, folders: Mapping[str, str]) -> Recipe:
    """Return a step that finds the results of other steps in these folders, by name."""
    return step.with_models(lambda ref: replace(ref, folder=folders[ref.path]) if ref.path in folders else ref)
