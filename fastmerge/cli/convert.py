"""``fastmerge convert``: GGUF, checkpoints of training, and the hub's layout."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from ..devices.names import DEFAULT
from ..sizes import show_size
from ._errors import Command
from ._options import CONFIG_SOURCE, FLOATS, JSON, NAMES, QUIET, RAM, SHARD_SIZE, THREADS, together
from ._output import note, print_facts, print_json
from ._planning import planned_source
from ._progress import progress
from .merge import run_plans, state_of

_MERGING = ("names", "config_source", "dtype", "shard_size", "ram", "threads", "overwrite", "allow_nonfinite")
_OF_FORMAT = {
    "gguf": ("type", "tokenizer", "pre_tokenizer", "names", "config_source"),
    "dcp": ("key", "like", *_MERGING),
    "hf": _MERGING,
}


@click.command(cls=Command)
@click.argument("model")
@click.argument("out", type=click.Path())
@click.option(
    "--to",
    "kind",
    type=click.Choice(tuple(_OF_FORMAT)),
    help="Format of OUT: GGUF, torch.distributed.checkpoint, or a folder of the hub.  [default: gguf for OUT.gguf]",
)
@click.option(
    "--type",
    type=click.Choice(("auto", "f32", "f16", "bf16", "q8_0")),
    default="auto",
    show_default=True,
    help="GGUF: of matrices; auto keeps that of the model. Vectors and routers are f32.",
)
@click.option("--tokenizer/--no-tokenizer", default=True, help="GGUF: write the tokenizer, too.  [default: yes]")
@click.option("--pre-tokenizer", help="GGUF: llama.cpp's name of how texts are split, where it is not recognized.")
@click.option(
    "--key", help='DCP: what leads to the model in the state; "" for nothing.  [default: model, or --like\'s]'
)
@click.option("--like", metavar="FOLDER", help="DCP: a checkpoint whose names and other items are taken over.")
@click.option("--dtype", type=click.Choice(FLOATS), help="DCP, hub: of OUT.  [default: the model's]")
@click.option("--overwrite", is_flag=True, help="DCP, hub: replace an existing output of fastmerge.")
@click.option("--allow-nonfinite", is_flag=True, help="DCP, hub: let NaN and infinity pass.")
@together(NAMES, CONFIG_SOURCE, SHARD_SIZE, RAM, THREADS, JSON, QUIET)
@click.pass_context
def convert(
    context: click.Context, model: str, out: str, kind: str | None, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Write MODEL, a folder or hub id, in another format: OUT.gguf, or a folder.

    \b
    fastmerge convert merged merged.gguf --type q8_0
    fastmerge convert merged step-0 --to dcp
    fastmerge convert run/step-9 out --to hf --config base --names names.yml

    OUT appears when it is complete. A conversion into a folder is a merge of one model: one that stops goes on when it
    is called again, and fastmerge verify checks it. One into GGUF leaves nothing when it stops.
    """
    if kind is None:
        if not out.endswith(".gguf"):
            raise click.UsageError(
                f"{out} does not end in .gguf: name the format of the folder with --to dcp or --to hf"
            )
        kind = "gguf"
    for name in given:
        typed = context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        if typed and name not in _OF_FORMAT[kind]:
            option = {"config_source": "config"}.get(name, name.replace("_", "-"))
            raise click.UsageError(f"--{option} means nothing to --to {kind}")
    own = {name: given[name] for name in _OF_FORMAT[kind]}
    if kind != "gguf":
        _as_merge(model, out, kind, own, {"as_json": as_json, "quiet": quiet})
        return
    from ..conversion import convert as to_gguf

    with progress("converting", quiet or as_json) as update:
        report = to_gguf(model, out, progress=update, **own)
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    for text in report.notes:
        note(text, quiet)
    if not quiet:
        others = f"; {len(report.others)} matrices are f16, as their rows are no whole blocks" if report.others else ""
        print_facts(
            [
                ("file", f"{report.path}, {show_size(report.nbytes)}"),
                ("tensors", f"{report.tensors}, matrices {report.type}{others}"),
                ("tokenizer", report.tokenizer or "none"),
                ("time", f"{report.seconds:.1f} s"),
            ]
        )


def _as_merge(model: str, out: str, kind: str, own: dict[str, Any], saying: dict[str, Any]) -> None:
    from ..conversion.passing import passing

    what = "a folder of the hub" if kind == "hf" else "a checkpoint of training"
    recipe = passing(model, what, *(own.pop(name) for name in ("names", "config_source", "dtype")))
    state = state_of(kind, own.pop("key", None), own.pop("like", None))
    fixed = {"device": DEFAULT, "vram": None, "backend": "auto"}
    run_plans(planned_source(recipe, own | saying | fixed | {"state": state}, "convert", made=True), out)
