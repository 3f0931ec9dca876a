"""``fastmerge analyze``."""

from __future__ import annotations

import os
import shlex

import click

from ._errors import Command
from ._options import CONFIG_SOURCE, JSON, NAMES, QUIET, RAM, together
from ._output import note, print_json, print_table
from ._progress import progress
from ._text import wrapped


@click.command(cls=Command)
@click.argument("models", nargs=-1)
@click.option("--base", help="The model that MODELS were tuned from.")
@click.option("--out", required=True, type=click.Path(), help="Folder of the report.")
@click.option("--ho-gsvd", is_flag=True, help="Compare the directions that the models use, in a few layers.")
@click.option(
    "--choose",
    "choose_models",
    type=click.IntRange(min=2),
    help="Find so many models that have least in common (HO-GSVD).",
)
@click.option(
    "--show",
    multiple=True,
    help="Part of the names of matrices whose singular values are drawn; repeatable.  [default: two in the middle]",
)
@click.option(
    "--beta",
    type=click.FloatRange(0, 1),
    default=0.2,
    show_default=True,
    help="Of Subspace Boosting, in the pictures of singular values.",
)
@click.option("--theorem", is_flag=True, help="Demonstrate rank collapse on synthetic deltas; needs no MODELS.")
@click.option("--exact", is_flag=True, help="Decompose every matrix in full: slow, and free of the bound on its error.")
@together(NAMES, CONFIG_SOURCE, RAM, JSON, QUIET)
def analyze(
    models: tuple[str, ...], base: str | None, out: str, ram: int, as_json: bool, quiet: bool, **options
) -> None:
    """Report what MODELS changed in their base, and what to merge them by, with pictures and tables.

    Cosines of the deltas, norms, densities and sign conflicts by layer and module, singular values before and after
    merging and boosting, stable ranks as models are added. The report is one page, report.html, with what to try first
    in words and as a recipe, and tables beside it. A stopped analysis goes on when its command is run again.
    """
    from ..analysis import analyze as analyze_models

    with progress("reading", quiet or as_json) as update:
        report = analyze_models(models, base, out, ram=ram, progress=update, **options)
    if as_json:
        print_json(report)
        return
    for text in report.notes:
        note(text, quiet)
    if quiet:
        return
    rows = [
        (model["label"], f"{model['norm']:.4g}", *(f"{100 * model[key]:.3g} %" for key in ("relative_norm", "density")))
        for model in report.summary.get("models", ())
    ]
    if rows:
        print_table(("model", "norm of delta", "relative", "changed"), rows, numbers=3)
    choice = report.summary.get("choice")
    if choice:
        names = ", ".join(choice["models"])
        click.echo(f"least in common: {names} (alignment {choice['score']:.3f}, of all pairs {choice['usual']:.3f})")
    if report.advice:
        recipe = shlex.quote(os.path.relpath(report.recipe))
        click.echo(wrapped(f"{report.advice} The recipe is in {recipe}; fastmerge merge {recipe} OUT makes it."))
    click.echo(f"report: {report.page}, {len(report.files)} files")
