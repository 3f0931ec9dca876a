"""``fastmerge bench``."""

from __future__ import annotations

import click

from ._errors import Command
from ._garbage import collect_from_here
from ._options import BACKEND, JSON
from ._output import print_json, print_table


@click.command(cls=Command)
@click.option(
    "--elements", type=click.IntRange(min=1), default=16 * 2**20, show_default=True, help="Elements per tensor."
)
@BACKEND
@JSON
def bench(elements: int, backend: str, as_json: bool) -> None:
    """Time some methods on tensors in memory beside a plain copy, which is the bound.

    The benchmarks against other tools are in the folder benchmarks/ of the source.
    """
    from ..reports.roofline import RUNS, measure

    collect_from_here()
    found = list(measure(elements, backend))
    copy = found[0].rate
    if as_json:
        print_json([{"name": m.name, "seconds": m.seconds, "bytes": m.nbytes, "of_copy": m.rate / copy} for m in found])
        return
    click.echo(f"{elements} bfloat16 elements per tensor, median of {RUNS} runs, each byte counted once")
    rows = [(m.name, f"{1e3 * m.seconds:.1f}", f"{m.rate / 1e9:.1f}", f"{100 * m.rate / copy:.0f} %") for m in found]
    print_table(("operation", "ms", "GB/s", "of copy"), rows, numbers=3)
