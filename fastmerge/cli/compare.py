"""``fastmerge diff``."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import click

from ._errors import Command
from ._options import JSON
from ._output import note, print_json, print_table

if TYPE_CHECKING:
    from ..reports.comparing import TensorDifference


@click.command(cls=Command)
@click.argument("a")
@click.argument("b")
@click.option("--changed", is_flag=True, help="Only tensors that differ.")
@JSON
def diff(a: str, b: str, changed: bool, as_json: bool) -> None:
    """Compare the checkpoints A and B, tensor by tensor: L2 norm of B - A, cosine, share of changed elements."""
    from ..checkpoint import locate, open_checkpoint
    from ..checkpoint.quantized import decoded
    from ..reports.comparing import compare

    left, right = (decoded(open_checkpoint(locate(path))) for path in (a, b))
    for text in (*left.notes, *right.notes):
        note(text, as_json)
    found = [item for item in compare(left, right) if not changed or item.changed != 0]
    if as_json:
        print_json([_finite(item) for item in found])
        return
    rows = [
        (
            item.name,
            item.status if item.changed is None else f"{100 * item.changed:.2f} %",
            "" if item.l2 is None else f"{item.l2:.6g}",
            "" if item.cosine is None else f"{item.cosine:.6f}",
        )
        for item in found
    ]
    print_table(("tensor", "changed", "L2 of b - a", "cosine"), rows, numbers=3)
    same = sum(item.changed == 0 for item in found)
    click.echo(f"{len(found)} tensors, {same} of them equal")


def _finite(item: TensorDifference) -> dict[str, Any]:
    """Return the fields; NaN and infinity, which JSON lacks, become null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in dataclasses.asdict(item).items()
    }
