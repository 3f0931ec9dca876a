"""Replacing attributes of another package, and putting them back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any

from .calls import Report, Uncovered

_MISSING = object()
_active: dict[str, Patch] = {}


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

    def serving(
        self, name: str | Callable[..., str], own: Callable[..., Any], serve: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Return a function that calls ``serve``, or ``own`` where that raises ``Uncovered``; both are counted.

        ``name`` is what the report calls it, or a function that says so of the arguments.
        """

        @functools.wraps(own)
        def function(*arguments: Any, **options: Any) -> Any:
            called = name if isinstance(name, str) else name(*arguments, **options)
            try:
                result = serve(*arguments, **options)
            except Uncovered as why:
                self.report.count(called, str(why))
                return own(*arguments, **options)
            self.report.count(called)
            return result

        return function

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


def apply(package: str, report: Report, install: Callable[[Patch], None]) -> Patch:
    """Return a patch that ``install`` filled, in place of the earlier one of the package; none where it fails."""
    undo(package)
    patch = _active[package] = Patch(report)
    try:
        install(patch)
    except BaseException:
        undo(package)
        raise
    return patch


def undo(package: str) -> None:
    """Give a package its own functions back; where nothing is patched there is nothing to do."""
    if patch := _active.pop(package, None):
        patch.undo()


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, type) or type(owner).__module__ == "builtins":
        setattr(owner, name, value)
    else:
        object.__setattr__(owner, name, value)
