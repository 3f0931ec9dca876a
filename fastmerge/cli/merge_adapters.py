"""``fastmerge merge-adapters``."""

from __future__ import annotations

import dataclasses

import click

from ..sizes import show_size
from ._errors import Command
from ._options import JSON, QUIET, RAM, dtype_option, together
from ._output import print_facts, print_json
from ._progress import progress

# PEFT's combination types; a test holds them against the package's own list, which is slow to import.
TYPES = (
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip


@click.command("merge-adapters", cls=Command)
@click.argument("adapters", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(), help="Folder of the merged adapter.")
@click.option(
    "--type",
    "combination",
    type=click.Choice(TYPES),
    default="svd",
    show_default=True,
    metavar="KIND",
    help=f"PEFT's combination_type: {', '.join(TYPES)}. cat keeps the sum exactly, with the sum of the ranks.",
)
@click.option(
    "--weight",
    "weights",
    type=float,
    multiple=True,
    help="Of one adapter; once for each, in their order. Without any, 1 each: their sum.",
)
@click.option("--rank", type=click.IntRange(min=1), help="Of the result of svd types; by default the largest one.")
@click.option("--density", type=click.FloatRange(0, 1), help="Share of the elements that is kept, of pruning types.")
@click.option(
    "--majority-sign-method",
    type=click.Choice(("total", "frequency")),
    default="total",
    show_default=True,
    help="How types with ties elect signs: by the sum, or by number.",
)
@click.option(
    "--scaling",
    type=click.Choice(("once", "twice")),
    default="once",
    show_default=True,
    help="twice: svd types apply alpha / r twice, as PEFT did before 0.21.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of types with dare.")
@dtype_option("Of the merged factors.")
@together(RAM, JSON, QUIET)
def merge_adapters(adapters: tuple[str, ...], out: str, ram: int, as_json: bool, quiet: bool, **options) -> None:
    """Merge LoRA ADAPTERS of one base into an adapter that PEFT loads, as its add_weighted_adapter does.

    Adapters are folders or hub ids. To merge them into a model, name base+adapter in a recipe instead.
    """
    from ..adapters import merge_adapter_folders

    options["weights"] = options["weights"] or None
    with progress("merging", quiet or as_json) as update:
        report = merge_adapter_folders(adapters, out, ram=ram, progress=update, **options)
    if as_json:
        print_json(dataclasses.asdict(report))
    elif not quiet:
        least, most = report.ranks
        facts = [
            ("adapter", f"{report.folder}, {show_size(report.nbytes)}"),
            ("merged", f"{report.modules} modules by {report.combination}"),
            ("rank", str(most) if least == most else f"{least} to {most}"),
        ]
        if report.error is not None:
            facts.append(("left out", f"{100 * report.error:.3g} % of the norm of the merged deltas"))
        print_facts([*facts, ("time", f"{report.seconds:.1f} s")])
