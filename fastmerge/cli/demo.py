"""``fastmerge demo``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..errors import explained
from ._errors import Command
from ._garbage import collect_from_here
from ._options import JSON
from ._output import print_json, print_table


@click.command(cls=Command)
@click.option(
    "--out", type=click.Path(path_type=Path), default="fastmerge-demo", show_default=True, help="Where to work."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of data, training and random methods.")
@click.option("--tour", is_flag=True, help="Then show resuming, verify, boosting and analyze, in its folder tour.")
@JSON
def demo(out: Path, seed: int, tour: bool, as_json: bool) -> None:
    """Train a base and three fine-tunes on the spot, merge them, and measure. Needs no download.

    Each model translates words of three made-up languages. The base knows half of each language; each fine-tune
    learned all of one. A good merge knows all three. Run again, it replaces what it made and leaves other files alone.
    The folder may be moved: its recipes name the models in it.
    """
    from ..demo import PICTURE, claim, draw, example, run_demo
    from ..demo.tasks import LANGUAGES

    def say(text: str) -> None:
        click.echo(text, err=True)

    collect_from_here()
    with explained(str(out), "writing", keeps=False):
        claim(out)
        rows = list(run_demo(out, seed, say))
        (out / PICTURE).write_text(draw(rows))
    if as_json:
        print_json([{"name": row.name, "accuracies": row.accuracies, "average": row.average} for row in rows])
    else:
        click.echo("share of words translated correctly")
        cells = [[row.name, *(f"{100 * a:.0f} %" for a in (*row.accuracies, row.average))] for row in rows]
        print_table(("model", *LANGUAGES, "average"), cells, numbers=len(LANGUAGES) + 1)
        shown = example(out, seed)
        click.echo(f"in {shown.language}, {shown.sentence!r} means {shown.meaning!r}")
        for name, answer in shown.answers.items():
            click.echo(f"  {name} says {answer!r}")
    if tour:
        from ..demo.tour import run_tour

        run_tour(out, seed, say)
    if not as_json:
        click.echo(f"Models, recipes and {PICTURE} are in {out}{os.sep}. Change a recipe and merge again:")
        click.echo(f"  fastmerge merge {out / 'ties.yml'} {out / 'mine'}")
