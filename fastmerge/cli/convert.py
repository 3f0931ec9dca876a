"""``fastmerge convert``."""

from __future__ import annotations

import dataclasses

import click

from ..sizes import show_size
from ._errors import Command
from ._options import JSON, QUIET, together
from ._output import note, print_facts, print_json
from ._progress import progress


@click.command(cls=Command)
@click.argument("model")
@click.argument("out", type=click.Path())
@click.option(
    "--type",
    type=click.Choice(("auto", "f32", "f16", "bf16", "q8_0")),
    default="auto",
    show_default=True,
    help="Of matrices; auto keeps that of the model. Vectors and routers are f32.",
)
@click.option("--tokenizer/--no-tokenizer", default=True, help="Write the tokenizer, too.  [default: yes]")
@click.option("--pre-tokenizer", help="llama.cpp's name of how the tokenizer splits texts, where it is not recognized.")
@together(JSON, QUIET)
def convert(model: str, out: str, as_json: bool, quiet: bool, **options) -> None:
    """Write MODEL, a folder or hub id, as the GGUF file OUT.

    The file appears when it is complete and its header was read back; a conversion that stops leaves nothing.
    """
    from ..conversion import convert as convert_model

    with progress("converting", quiet or as_json) as update:
        report = convert_model(model, out, progress=update, **options)
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    for text in report.notes:
        note(text, quiet)
    if quiet:
        return
    others = f"; {len(report.others)} matrices are f16, as their rows are no whole blocks" if report.others else ""
    print_facts(
        [
            ("file", f"{report.path}, {show_size(report.nbytes)}"),
            ("tensors", f"{report.tensors}, matrices {report.type}{others}"),
            ("tokenizer", report.tokenizer or "none"),
            ("time", f"{report.seconds:.1f} s"),
        ]
    )
