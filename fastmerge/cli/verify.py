"""``fastmerge verify``."""

from __future__ import annotations

import click

from ..sizes import show_size
from ._errors import Command
from ._options import BACKEND, JSON, PLUGIN, QUIET, RAM, THREADS, together
from ._output import note, print_facts, print_json
from ._progress import progress

DIFFERS = 1


@click.command(cls=Command)
@click.argument("out", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--sample", type=click.IntRange(min=0), help="Recompute so many tensors, chosen at random.  [default: all]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the sample.")
@together(PLUGIN, RAM, THREADS, BACKEND, JSON, QUIET)
def verify(
    out: str, sample: int | None, seed: int, ram: int, threads: int | None, backend: str, as_json: bool, quiet: bool
) -> None:
    """Recompute the tensors of OUT from its inputs and compare bits.

    The tensors that are not recomputed are compared with the checksums of the manifest. Exits with status 1
    when anything differs.
    """
    from ..api import verify as verify_output

    with progress("verifying", quiet or as_json) as update:
        report = verify_output(
            out, sample=sample, backend=backend, seed=seed, ram=ram, threads=threads, progress=update
        )
    if as_json:
        print_json({"ok": report.ok, "report": report})
    else:
        for text in report.notes:
            note(text, quiet)
        for problem in report.mismatches:
            click.echo(f"differs: {problem}", err=True)
        if not quiet:
            verdict = "every bit as recomputed" if report.ok else f"{len(report.mismatches)} findings"
            rate = show_size(report.bytes_read / report.seconds)
            print_facts(
                [
                    ("result", verdict),
                    ("tensors", f"{report.tensors}: {report.recomputed} recomputed, {report.checked} by checksum"),
                    ("time", f"{report.seconds:.2f} s ({rate}/s)"),
                ]
            )
    if not report.ok:
        raise SystemExit(DIFFERS)
