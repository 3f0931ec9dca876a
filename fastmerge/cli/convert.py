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
from .merge import run_plans

_OF_FORMAT = {
    "gguf": ("type", "tokenizer", "pre_tokenizer", "names", "config_source"),
    "dcp": ("key", "like", "names", "shard_size"),
    "hf": ("names", "config_source", "dtype", "shard_size", "ram", "threads", "overwrite"),
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
@click.option("--dtype", type=click.Choice(FLOATS), help="Hub: of OUT.  [default: the model's]")
@click.option("--overwrite", is_flag=True, help="Hub: replace an existing output of fastmerge.")
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

    OUT appears when it is complete and was read back. A conversion that stops leaves nothing, except one into the
    hub's layout: it is a merge, and goes on when it is called again.
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
    if kind == "hf":
        _to_hub(model, out, own, {"as_json": as_json, "quiet": quiet})
        return
    from ..conversion import convert as to_gguf
    from ..conversion import to_dcp

    with progress("converting", quiet or as_json) as update:
        report: Any = (to_gguf if kind == "gguf" else to_dcp)(model, out, progress=update, **own)
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    for text in report.notes:
        note(text, quiet)
    if not quiet:
        print_facts([*(_of_gguf(report) if kind == "gguf" else _of_dcp(report)), ("time", f"{report.seconds:.1f} s")])


def _of_gguf(report: Any) -> list[tuple[str, str]]:
    others = f"; {len(report.others)} matrices are f16, as their rows are no whole blocks" if report.others else ""
    return [
        ("file", f"{report.path}, {show_size(report.nbytes)}"),
        ("tensors", f"{report.tensors}, matrices {report.type}{others}"),
        ("tokenizer", report.tokenizer or "none"),
    ]


def _of_dcp(report: Any) -> list[tuple[str, str]]:
    where = f"under the key {report.key}" if report.key else "without a key"
    taken = [("taken over", f"{report.others} other items")] if report.others else []
    return [
        ("folder", f"{report.path}, {show_size(report.nbytes)}"),
        ("tensors", f"{report.tensors} {where}"),
        *taken,
        ("read back", "every byte as written"),
    ]


def _to_hub(model: str, out: str, own: dict[str, Any], saying: dict[str, Any]) -> None:
    from ..conversion.hub import hub_recipe

    recipe = hub_recipe(model, own.pop("names"), own.pop("config_source"), own.pop("dtype"))
    fixed = {"device": DEFAULT, "vram": None, "backend": "auto", "allow_nonfinite": False}
    run_plans(planned_source(recipe, own | saying | fixed), out)
