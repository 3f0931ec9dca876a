"""Filters of a recipe that match no tensor: most are typing errors, or patterns where a part of a name is meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ..recipe.filters import NameFilter
from ..recipe.types import Branch, Parameters, Recipe

_PATTERN = re.compile(r"[\\^$|+\[\](){}]")


def unmatched(recipe: Recipe, names: Iterable[str]) -> Iterator[str]:
    """Yield a note for every filter of the recipe that matches none of the output's tensors."""
    known = list(names)
    seen: set[tuple[str, NameFilter]] = set()
    for where, own in _filters(recipe):
        if (where, own) not in seen:
            seen.add((where, own))
            # That a star or a question mark is a part of no name was said when the recipe was read.
            said = own.kind == "filter" and set("*?") & set(own.text)
            if not said and not any(own.matches(name) for name in known):
                pattern = own.kind == "filter" and _PATTERN.search(own.text)
                hint = " (a filter is a part of a name; write glob: or regex: for a pattern)" if pattern else ""
                yield f"{where}: the {own.kind} {own.text!r} matches no tensor{hint}"


def _filters(recipe: Recipe) -> Iterator[tuple[str, NameFilter]]:
    for rule in recipe.rules:
        if rule.filter is not None:
            yield rule.where, rule.filter
    for branch in _branches(recipe):
        if branch.filter is not None:
            yield branch.where, branch.filter


def _branches(recipe: Recipe) -> Iterator[Branch]:
    tables: list[Parameters] = [recipe.parameters]
    for rule in recipe.rules:
        tables += [rule.parameters, *(source.parameters for source in rule.sources)]
    for module in recipe.modules:
        tables.append(module.parameters)
        for part in module.slices:
            tables += [part.parameters, *(source.parameters for source in part.sources)]
    for table in tables:
        for setting in table.values():
            yield from setting.branches
