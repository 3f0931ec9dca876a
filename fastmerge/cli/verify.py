"""``fastmerge verify``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ..results import counted
from ..sizes import show_size
from ._errors import Command
from ._options import BACKEND, JSON, PLUGIN, QUIET, RAM, THREADS, together
from ._output import note, print_facts, print_json
from ._progress import progress

if TYPE_CHECKING:
    from ..engine import RecipeReport, VerifyReport

DIFFERS, UNDECIDED = 1, 3

# Tensors that are listed, of each verdict.
LISTED = 10


@click.command(cls=Command)
@click.argument("out", type=click.Path(file_okay=False))
@click.option(
    "--recipe", type=click.Path(exists=True, dir_okay=False), help="Judge the output of any tool by a recipe."
)
@click.option(
    "--sample", type=click.IntRange(min=0), help="Recompute so many tensors, chosen at random.  [default: all]"
)
@click.option("--seed", type=int, help="Chooses the sample.  [default: 0]")
@together(PLUGIN, RAM, THREADS, BACKEND, JSON, QUIET)
def verify(
    out: str,
    recipe: str | None,
    sample: int | None,
    seed: int | None,
    ram: int,
    threads: int | None,
    backend: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Recompute the tensors of OUT from its inputs and compare bits.

    The tensors that are not recomputed are compared with the checksums of the manifest. With --recipe, OUT may be the
    output of any tool (mergekit, PEFT's merge_and_unload; FOLDER::KEY of a checkpoint of training): every tensor is
    equal, within that tool's rounding, or different.

    \b
    Exit status:
      0  equal, with --recipe also within rounding
      1  something differs
      2  an error
      3  nothing differs, but some tensors cannot be decided, as of random methods
    """
    if recipe is not None and sample is not None:
        raise click.UsageError("--sample needs the manifest of an output of fastmerge; leave it out with --recipe")
    if seed is not None and sample is None:
        raise click.UsageError("--seed chooses the tensors of --sample; give both, or neither")
    from ..api import verify as verify_output
    from ..api import verify_recipe
    from ..checkpoint.distributed import split_key

    if not os.path.isdir(out if recipe is None else split_key(out)[0]):
        raise click.BadParameter(f"Directory {out!r} does not exist.", param_hint="'OUT'")
    with progress("verifying", quiet or as_json) as update:
        if recipe is not None:
            judged = verify_recipe(recipe, out, backend=backend, ram=ram, threads=threads, progress=update)
        else:
            report = verify_output(
                out, sample=sample, backend=backend, seed=seed or 0, ram=ram, threads=threads, progress=update
            )
    if recipe is not None:
        raise SystemExit(_show_judged(judged, as_json, quiet))
    _show(report, as_json, quiet)
    if not report.ok:
        raise SystemExit(DIFFERS)


def _show(report: VerifyReport, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json({"ok": report.ok, "report": report})
        return
    for text in report.notes:
        note(text, quiet)
    for problem in report.mismatches:
        click.echo(f"differs: {problem}", err=True)
    if not quiet:
        verdict = "every bit as recomputed" if report.ok else counted(len(report.mismatches), "finding")
        rate = show_size(report.bytes_read / report.seconds)
        print_facts(
            [
                ("result", verdict),
                ("tensors", f"{report.tensors}: {report.recomputed} recomputed, {report.checked} by checksum"),
                ("time", f"{report.seconds:.2f} s ({rate}/s)"),
            ]
        )


def _show_judged(report: RecipeReport, as_json: bool, quiet: bool) -> int:
    """Print what a recipe says of an output; return the exit status."""
    status = {"different": DIFFERS, "undecided": UNDECIDED}.get(report.verdict, 0)
    if as_json:
        print_json({"verdict": report.verdict, "counts": report.counts, "report": report})
        return status
    for text in report.notes:
        note(text, quiet)
    for verdict in ("different", "undecided"):
        found = [item for item in report.tensors if item.verdict == verdict]
        for item in found[:LISTED]:
            click.echo(f"{verdict}: {item.name}: {item.detail}", err=True)
        if len(found) > LISTED:
            click.echo(f"{verdict}: and {len(found) - LISTED} more (--json lists all)", err=True)
    if not quiet:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts.items())
        print_facts([("result", report.verdict), ("tensors", counts), ("time", f"{report.seconds:.2f} s")])
    return status
