"""Parameter values per tensor, resolved once for all tensors that share them."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidInput
from ..methods import Parameter
from ..recipe import SourceSpec, resolve
from ..recipe.filters import NameFilter
from ..recipe.parts import Part
from .findings import Findings
from .rows import Row


class Values:
    """Resolves what the method is told of a tensor.

    Values depend on a tensor through the filters that match its name and, where there are gradients, through its
    depth; tensors that agree in both share one dictionary.
    """

    def __init__(self, findings: Findings):
        self._findings = findings
        self._settings: dict[int, tuple[list[NameFilter], bool]] = {}
        self._known: dict[tuple, dict[str, Any] | None] = {}

    def of(self, row: Row) -> dict[str, Any] | None:
        """Return the values by parameter, or None when one is invalid (reported once)."""
        part = row.members.part
        if id(part) not in self._settings:
            self._settings[id(part)] = _filters_and_gradients(part)
        filters, graded = self._settings[id(part)]
        names = list(row.names) if filters else []
        matching = tuple(filter_.matches(name) for filter_ in filters for name in names)
        key = (id(part), matching, row.t if graded else None)
        if key not in self._known:
            try:
                self._known[key] = _resolve(row)
            except InvalidInput as error:
                known = self._findings.problems
                known.extend(problem for problem in error.problems if problem not in known)
                self._known[key] = None
        return self._known[key]


def _filters_and_gradients(part: Part) -> tuple[list[NameFilter], bool]:
    """Return the filters that the settings of a part use, and whether any of them is a gradient."""
    owners: list[SourceSpec | None] = [None, *part.inputs.tensors]
    branches = [
        branch
        for parameter in part.parameters
        for owner in owners
        for table in part.levels(owner, parameter)
        if parameter.name in table
        for branch in table[parameter.name].branches
    ]
    filters = dict.fromkeys(branch.filter for branch in branches if branch.filter is not None)
    return list(filters), any(isinstance(branch.value, tuple) for branch in branches)


def _resolve(row: Row) -> dict[str, Any]:
    part = row.members.part

    def value(source: SourceSpec | None, parameter: Parameter) -> Any:
        return resolve(part, source, parameter, row.key, row.t, row.name_in(source) if source else None)

    return {
        p.name: tuple(value(source, p) for source in part.inputs.tensors) if p.per_model else value(None, p)
        for p in part.parameters
    }
