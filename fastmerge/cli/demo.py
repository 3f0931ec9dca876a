"""``fastmerge demo``."""

from __future__ import annotations

from pathlib import Path

import click

from ._errors import Command
from ._garbage import collect_from_here
from ._options import JSON
from ._output import print_json, print_table


@click.command(cls=Command)
@click.option(
    "--out", type=click.Path(path_type=Path), default="fastmerge-demo", show_default=True, help="Where to work."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of data, training and random methods.")
@JSON
def demo(out: Path, seed: int, as_json: bool) -> None:
    """Train a base and three fine-tunes on the spot, merge them, and measure. Needs no download.

    Each model translates words of three made-up languages. The base knows half of each language; each fine-tune
    learned all of one. A good merge knows all three. Run again, it replaces what it made and leaves other files alone.
    """
    from ..demo import claim, run_demo
    from ..demo.tasks import LANGUAGES

    collect_from_here()
    out = out.absolute()
    claim(out)
    rows = list(run_demo(out, seed, lambda text: click.echo(text, err=True)))
    if as_json:
        print_json([{"name": row.name, "accuracies": row.accuracies, "average": row.average} for row in rows])
        return
    click.echo("share of words translated correctly")
    cells = [[row.name, *(f"{100 * a:.0f} %" for a in (*row.accuracies, row.average))] for row in rows]
    print_table(("model", *LANGUAGES, "average"), cells, numbers=len(LANGUAGES) + 1)
    click.echo(f"The checkpoints and recipes are in {out}. Change one and merge again:")
    click.echo(f"  fastmerge merge {out / 'ties.yml'} {out / 'mine'}")
