"""``fastmerge extract``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ..sizes import show_size
from ._errors import Command
from ._options import JSON, QUIET, RAM, dtype_option, together
from ._output import note, print_facts, print_json, print_table
from ._progress import progress

if TYPE_CHECKING:
    from ..extraction import ExtractionReport

# Names that a note lists; --json has all.
NAMED = 5


@click.command(cls=Command)
@click.argument("base")
@click.argument("finetuned")
@click.option("--out", required=True, type=click.Path(), help="Folder of the adapter.")
@click.option(
    "--rank",
    "--max-rank",
    "rank",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Rank of a matrix; with --energy the most.",
)
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    help="Give each matrix the least rank that holds this share of its squared norm.",
)
@click.option(
    "--matrices",
    type=click.Choice(("attn_mlp", "all")),
    default="attn_mlp",
    show_default=True,
    help="Attention and MLP projections in numbered layers, or every linear layer.",
)
@click.option(
    "-i",
    "--include",
    "--include-regex",
    "include",
    multiple=True,
    metavar="REGEX",
    help="Only linear layers in whose name this is found, whatever --matrices says; may be given several times.",
)
@click.option(
    "-e",
    "--exclude",
    "--exclude-regex",
    "exclude",
    multiple=True,
    metavar="REGEX",
    help="No layers in whose name this is found.",
)
@click.option("--embeddings", "--embed-lora", "embeddings", is_flag=True, help="Input embeddings, too.")
@dtype_option("Of the adapter's factors.")
@click.option(
    "--save-others",
    is_flag=True,
    help="Store other tensors that differ whole (PEFT's modules_to_save).",
)
@together(RAM, JSON, QUIET)
def extract(base: str, finetuned: str, out: str, ram: int, as_json: bool, quiet: bool, **options) -> None:
    """Make a LoRA adapter (PEFT) of BASE out of FINETUNED: the best approximation of every matrix by a low rank.

    Models are folders or hub ids. The matrices are taken one at a time; the adapter appears when it is complete.
    """
    from ..extraction import extract as extract_adapter

    with progress("extracting", quiet or as_json) as update:
        report = extract_adapter(base, finetuned, out, ram=ram, progress=update, **options)
    if as_json:
        print_json({**dataclasses.asdict(report), "energy": report.energy, "error": report.error})
        return
    for text in (*report.notes, *_left_out(report)):
        note(text, quiet)
    if not quiet:
        _show(report)


def _left_out(report: ExtractionReport) -> Iterator[str]:
    """Yield a sentence for each reason why tensors that differ are not in the adapter."""
    names: dict[str, list[str]] = {}
    for other in report.others:
        if not other.saved:
            names.setdefault(other.reason, []).append(other.name)
    for reason, found in names.items():
        listed = ", ".join(found[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
        yield f"not in the adapter although different: {listed}: {reason}"


def _show(report: ExtractionReport) -> None:
    rows = [
        (m.name.removesuffix(".weight"), " x ".join(map(str, m.shape)), str(m.rank), *_share(m.energy, m.error))
        for m in report.matrices
    ]
    print_table(("module", "shape", "rank", "energy", "error"), rows, numbers=4)
    energy, error = _share(report.energy, report.error)
    saved = sum(other.saved for other in report.others)
    print_facts(
        [
            ("adapter", f"{report.folder}, {show_size(report.nbytes)}"),
            ("matrices", f"{len(report.matrices)}; their energy kept {energy}, error {error}"),
            ("stored whole", str(saved)),
            ("left out", f"{len(report.others) - saved} that differ; {report.unchanged} tensors are equal"),
            ("time", f"{report.seconds:.1f} s"),
        ]
    )


def _share(energy: float, error: float) -> tuple[str, str]:
    return f"{100 * energy:.2f} %", f"{100 * error:.3g} %"
