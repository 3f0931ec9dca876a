"""Printing: tables on stdout, notes on stderr, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import click

from ._text import fixed_width


def note(text: str, quiet: bool = False) -> None:
    """Print a note on stderr."""
    if not quiet:
        click.echo(f"note: {text}", err=True)


def print_json(value: Any) -> None:
    """Print ``value`` as JSON; dataclasses become objects."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print aligned ``name  value`` lines."""
    facts = list(facts)
    width = max(len(name) for name, _ in facts)
    columns = fixed_width()
    for name, value in facts:
        line = f"{name:<{width}}  {value}"
        if columns is not None and len(line) > columns:
            line = textwrap.fill(
                value, columns, initial_indent=line[: width + 2], subsequent_indent=" " * (width + 2),
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
        click.echo(line)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> None:
    """Print a table; the last ``numbers`` columns are aligned to the right. Long cells fold on a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=fixed_width())
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i >= len(columns) - numbers else "left", overflow="fold")
    cells = [[*row] for row in rows]
    for row in cells:
        table.add_row(*row)
    if fixed_width() is None:
        # A pipe has no width: give every column the space that it needs.
        longest = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
        console = Console(width=sum(longest) + 3 * len(columns) + 3)
    with console.capture() as capture:
        console.print(table, markup=False, highlight=False)
    click.echo("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()), nl=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
