"""Parameter values per tensor, resolved once for all tensors that share them."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidInput
from ..methods import Method, Parameter
from ..recipe import Recipe, SourceSpec, resolve
from ..recipe.resolving import levels, parameters_of
from .findings import Findings
from .rows import Members, Row


class Values:
    """Resolves what the method is told of a tensor.

    Values depend on a tensor through the filters that match its name and, where there are gradients, through its
    depth; tensors that agree in both share one dictionary.
    """

    def __init__(self, recipe: Recipe, method: Method, findings: Findings):
        self._recipe, self._findings = recipe, findings
        self._parameters = parameters_of(recipe, method)
        self._settings: dict[int, tuple[list[str], bool]] = {}
        self._known: dict[tuple, dict[str, Any] | None] = {}

    def of(self, row: Row) -> dict[str, Any] | None:
        """Return the values by parameter, or None when one is invalid (reported once)."""
        members = row.members
        if id(members) not in self._settings:
            self._settings[id(members)] = self._filters_and_gradients(members)
        filters, graded = self._settings[id(members)]
        key = (id(members), tuple(part in row.name for part in filters), row.t if graded else None)
        if key not in self._known:
            try:
                self._known[key] = self._resolve(row)
            except InvalidInput as error:
                known = self._findings.problems
                known.extend(problem for problem in error.problems if problem not in known)
                self._known[key] = None
        return self._known[key]

    def _filters_and_gradients(self, members: Members) -> tuple[list[str], bool]:
        """Return the filters that the settings of these inputs use, and whether any of them is a gradient."""
        owners: list[SourceSpec | None] = [None, *members.sources]
        branches = [
            branch
            for parameter in self._parameters
            for owner in owners
            for table in levels(self._recipe, members.slice_, owner, parameter)
            if parameter.name in table
            for branch in table[parameter.name].branches
        ]
        filters = dict.fromkeys(branch.filter for branch in branches if branch.filter is not None)
        return list(filters), any(isinstance(branch.value, tuple) for branch in branches)

    def _resolve(self, row: Row) -> dict[str, Any]:
        def value(source: SourceSpec | None, parameter: Parameter) -> Any:
            return resolve(self._recipe, row.members.slice_, source, parameter, row.name, row.t)

        return {
            p.name: tuple(value(source, p) for source in row.members.sources) if p.per_model else value(None, p)
            for p in self._parameters
        }
