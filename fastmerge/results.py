"""What the package's functions return: a line as text, a table in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Result", "counted", "facts_table", "table"]


class Result:
    """A result, which says in a line what came of it (``__str__``) and, in notebooks, its ``facts`` below.

    So are its ``notes`` shown, where it has any. Dataclasses that are results have ``repr=False``, so that a console
    shows the line and not every field.
    """

    def facts(self) -> list[tuple[str, str]]:
        """Return what to show of it, as names and texts."""
        return []

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def _repr_html_(self) -> str:
        facts = self.facts()
        notes = "".join(f"<p>note: {_escape(note)}</p>" for note in getattr(self, "notes", ()))
        return f"<p>{_escape(str(self))}</p>{facts_table(facts) if facts else ''}{notes}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 file, 2 files."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _escape(text: str) -> str:
    import html  # slow, and of no use outside of notebooks and pages

    return html.escape(text)


def facts_table(facts: Iterable[tuple[str, str]]) -> str:
    """Return names and values as an HTML table."""
    cell = 'style="text-align:left"'
    rows = "".join(f"<tr><th {cell}>{_escape(name)}</th><td {cell}>{_escape(value)}</td></tr>" for name, value in facts)
    return f"<table>{rows}</table>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a head as HTML."""
    head = "".join(f"<th>{_escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
