"""Replacing attributes of another package, and putting them back."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from .calls import Report

_MISSING = object()


class Patch:
    """Attributes that were replaced. Leaving its ``with`` block, or ``undo()``, puts the old ones back.

    Attributes:
        report: the calls since then.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self._replaced: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, new: Any) -> None:
        """Set an attribute of a module, a class or an object; a frozen one, too."""
        self._replaced.append((owner, name, vars(owner).get(name, _MISSING)))
        _set(owner, name, new)

    def undo(self) -> None:
        """Put back what was replaced; a second time there is nothing to do."""
        while self._replaced:
            owner, name, old = self._replaced.pop()
            if old is not _MISSING:
                _set(owner, name, old)
            elif isinstance(owner, type):
                delattr(owner, name)
            else:
                object.__delattr__(owner, name)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, type) or type(owner).__module__ == "builtins":
        setattr(owner, name, value)
    else:
        object.__setattr__(owner, name, value)
