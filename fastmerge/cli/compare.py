"""``fastmerge diff``."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import click

from ._errors import Command
from ._garbage import collect_from_here
from ._options import JSON, NAMES
from ._output import note, print_json, print_table
from ._text import wrapped

if TYPE_CHECKING:
    from ..reports.comparing import TensorDifference

DIFFERENT = 1


@click.command(cls=Command)
@click.argument("a")
@click.argument("b")
@click.option("--changed", is_flag=True, help="Only tensors that differ.")
@click.option(
    "--sort",
    type=click.Choice(("order", "name", "changed", "l2", "cosine")),
    default="order",
    show_default=True,
    help="In the order of A, by name, or by a number: those that differ most first.",
)
@click.option("--top", type=click.IntRange(min=0), help="List so many tensors, the first of them.")
@click.option("--exit-code", is_flag=True, help="End with status 1 where anything differs.")
@NAMES
@JSON
def diff(
    a: str, b: str, changed: bool, sort: str, top: int | None, exit_code: bool, names: str | None, as_json: bool
) -> None:
    """Compare the models A and B: share of changed elements, L2 norm of B - A, cosine; by tensor and in all.

    Each is a folder, a file, a hub id, or model+adapter, which is folded in as a merge does it.
    """
    from ..reports.comparing import COLUMNS
    from ..reports.comparing import diff as difference

    collect_from_here()
    found = difference(a, b, names=names)
    for text in found.notes:
        note(text, as_json)
    listed = [item for item in found.sorted(sort) if not changed or item.changed != 0]
    shown = listed if top is None else listed[:top]
    if as_json:
        total = {"tensors": len(found.tensors), "equal": found.equal, "changed": found.changed}
        total |= {"l2": _finite(found.l2), "cosine": _finite(found.cosine)}
        print_json({"tensors": [_values(item) for item in shown], "total": total})
    else:
        if shown:
            print_table(COLUMNS, found.rows(shown), numbers=3)
        if len(shown) < len(listed):
            click.echo(f"and {len(listed) - len(shown)} more")
        click.echo(wrapped(str(found), hanging="  "))
    if exit_code and found.equal < len(found.tensors):
        raise SystemExit(DIFFERENT)


def _values(item: TensorDifference) -> dict[str, Any]:
    """Return the fields that are results."""
    return {key: _finite(value) for key, value in dataclasses.asdict(item).items() if key != "squares"}


def _finite(value: Any) -> Any:
    """Return a value; NaN and infinity, which JSON lacks, become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
