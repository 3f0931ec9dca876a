"""The methods, for notebooks and programs."""

from __future__ import annotations

from ..errors import nearest
from ..methods import Method, all_methods
from ..results import Result, table


class Methods(Result, dict[str, Method]):
    """Every merge method by name; shown as a list with a line for each."""

    def __missing__(self, name: str) -> Method:
        close = nearest(name, self)
        raise KeyError(f"{name} (did you mean {close}?)" if close else name)

    def __repr__(self) -> str:
        return f"<{len(self)} merge methods>"

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {method.summary}" for name, method in self.items())

    def _repr_html_(self) -> str:
        rows = [(name, method.summary, method.paper) for name, method in self.items()]
        return table(("method", "what it does", "source"), rows)


def list_methods() -> Methods:
    """Return every merge method by name, in alphabetical order; those of plugins that are loaded, too."""
    return Methods(all_methods())
