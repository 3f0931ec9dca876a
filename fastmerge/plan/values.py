"""Parameter values per tensor, resolved once for all tensors that share them."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidInput, Problem
from ..methods import Method
from ..recipe import resolve
from ..recipe.resolving import levels
from ..recipe.types import Branch, Recipe, SliceSpec, SourceSpec
from .rows import Members, Row


class Values:
    """Resolves what the method is told of a tensor.

    Values depend on a tensor through the filters that match its name and, where there are gradients, through its
    depth; tensors that agree in both share one dictionary.
    """

    def __init__(self, recipe: Recipe, method: Method, problems: list[Problem]):
        self._recipe, self._method, self._problems = recipe, method, problems
        self._branches: dict[int, list[Branch]] = {}
        self._known: dict[tuple, dict[str, Any] | None] = {}

    def of(self, row: Row) -> dict[str, Any] | None:
        """Return the values by parameter, or None when one is invalid (reported once)."""
        branches = self._branches_of(row.members)
        matching = tuple(branch.matches(row.name) for branch in branches if branch.filter is not None)
        depth = row.t if any(isinstance(branch.value, tuple) for branch in branches) else 0.0
        key = (id(row.members), matching, depth)
        if key not in self._known:
            try:
                self._known[key] = self._resolve(row)
            except InvalidInput as error:
                self._problems.extend(problem for problem in error.problems if problem not in self._problems)
                self._known[key] = None
        return self._known[key]

    def _branches_of(self, members: Members) -> list[Branch]:
        if id(members) not in self._branches:
            owners: list[SourceSpec | None] = [None, *members.sources]
            tables = [
                table
                for parameter in self._method.parameters
                for owner in owners
                for table in levels(self._recipe, members.slice_, owner, parameter)
            ]
            names = {parameter.name for parameter in self._method.parameters}
            found = [
                b for table in tables for name, setting in table.items() if name in names for b in setting.branches
            ]
            self._branches[id(members)] = list(dict.fromkeys(found))
        return self._branches[id(members)]

    def _resolve(self, row: Row) -> dict[str, Any]:
        def value(source: SourceSpec | None, parameter) -> Any:
            slice_: SliceSpec = row.members.slice_
            return resolve(self._recipe, slice_, source, parameter, row.name, row.t)

        return {
            p.name: tuple(value(source, p) for source in row.members.sources) if p.per_model else value(None, p)
            for p in self._method.parameters
        }
