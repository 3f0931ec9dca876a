"""The tensors of an adapter's file, taken out one kind after the other; what is left in the end is strange."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import CheckpointError
from ..types import TensorEntry
from .patterns import compile_pattern
from .types import Change, Experts

__all__ = ["REMEDY", "Stored", "by_pattern"]

REMEDY = "merge it into its base with PEFT (merge_and_unload) and name the result"


class Stored:
    """What is known so far of an adapter.

    Attributes:
        path:   of its weights.
        config: its ``adapter_config.json``.
        left:   the tensors that nothing has taken yet, by the names that the base has for them.
        changes, replaced, experts: as in ``PeftAdapter``.
        strange: what fits nowhere.
    """

    def __init__(self, path: str, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]):
        self.path, self.config, self.left = path, config, dict(tensors)
        self.changes: dict[str, Change] = {}
        self.replaced: dict[str, TensorEntry] = {}
        self.experts: dict[str, Experts] = {}
        self.strange: list[str] = []

    def take(self, pattern: re.Pattern[str]) -> dict[str, dict[str, TensorEntry]]:
        """Take every tensor whose name is ``pattern``, by its groups ``module`` and ``role``."""
        found: dict[str, dict[str, TensorEntry]] = {}
        for name in list(self.left):
            if match := pattern.fullmatch(name):
                found.setdefault(match["module"], {})[match["role"]] = self.left.pop(name)
        return found

    def complete(self, module: str, parts: Mapping[str, TensorEntry], roles: Iterable[str]) -> bool:
        """True where a module has a matrix for each of these roles, and no other; else it is strange."""
        roles = list(roles)
        if parts.keys() != set(roles):
            missing = [role for role in roles if role not in parts] or [r for r in parts if r not in roles]
            self.strange.append(f"{module} ({'without' if missing[0] in roles else 'with'} {missing[0]})")
        return parts.keys() == set(roles)

    def change(self, name: str, change: Change) -> None:
        """Enter what becomes of a tensor; two changes of one are strange."""
        if name in self.changes:
            self.strange.append(f"{name} (changed twice)")
        self.changes[name] = change

    def wrong(self, what: str, remedy: str = REMEDY) -> CheckpointError:
        """Return the error for what cannot be folded."""
        return CheckpointError(f"{self.path}: {what} ({remedy})")


def by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of the module's name, as PEFT chooses it."""
    for pattern, value in (patterns or {}).items():
        if compile_pattern(pattern, "adapter_config.json").match(module):
            return value
    return default
