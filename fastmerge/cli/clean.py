"""``fastmerge clean``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from ..sizes import show_size
from ._errors import Command
from ._options import JSON
from ._output import print_json, print_table

if TYPE_CHECKING:
    from ..engine.leftovers import Leftover


@click.command(cls=Command)
@click.argument("folder", default=".", type=click.Path())
@click.option("--yes", "-y", is_flag=True, help="Remove without asking.")
@click.option("--dry-run", is_flag=True, help="List and remove nothing.")
@JSON
def clean(folder: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """List what stopped merges and analyses left in FOLDER, or left of the output FOLDER, and remove it.

    What a process works on is kept. What was stopped goes on when its command is run again, as long as its
    partial folder is there.
    """
    found = _find(folder)
    idle = [leftover for leftover in found if not leftover.in_use]
    if not as_json:
        _show(folder, found)
    asked = sys.stdin.isatty() and not as_json
    chosen = not dry_run and bool(idle) and (yes or (asked and click.confirm("Remove what is not in use?")))
    if chosen:
        from ..engine.leftovers import remove

        for leftover in idle:
            remove(leftover)
    if as_json:
        print_json([{**vars(leftover), "removed": chosen and leftover in idle} for leftover in found])
    elif chosen:
        click.echo(f"removed {len(idle)}, {show_size(sum(leftover.nbytes for leftover in idle))}")
    elif idle and not dry_run and not asked:
        click.echo("nothing was removed; --yes removes what is not in use")


def _find(folder: str) -> list[Leftover]:
    from pathlib import Path

    from ..engine.leftovers import leftovers_in, leftovers_of
    from ..errors import OutputError

    real = Path(os.path.realpath(folder))
    if not real.parent.is_dir():
        raise OutputError(f"{real.parent} is no folder")
    return [*(leftovers_in(real) if real.is_dir() else ()), *leftovers_of(real)]


def _show(folder: str, found: list[Leftover]) -> None:
    if not found:
        click.echo(f"{folder}: no merge left anything")
        return
    rows = [
        (str(leftover.path), "in use" if leftover.in_use else "", str(leftover.finished), show_size(leftover.nbytes))
        for leftover in found
    ]
    print_table(("left", "", "tensors finished", "size"), rows, numbers=2)
