"""``fastmerge emr``: experts in little more than the space of one."""

from __future__ import annotations

import click

from ..errors import FastmergeError
from ._errors import Command, Commands
from ._garbage import collect_from_here
from ._options import JSON, QUIET, dtype_option, together
from ._output import print_facts, print_json
from ._progress import progress


@click.group(cls=Commands)
def emr() -> None:
    """Keep fine-tunes of one base as one delta with a mask each, and give them back (EMR)."""


@emr.command(cls=Command)
@click.argument("base")
@click.argument("models", nargs=-1, required=True, metavar="[TASK=]MODEL...")
@click.option("--out", required=True, type=click.Path(), help="Folder of the artifact.")
@dtype_option("Of the delta.")
@together(JSON, QUIET)
def save(base: str, models: tuple[str, ...], out: str, dtype: str, as_json: bool, quiet: bool) -> None:
    """Write the artifact of MODELS, fine-tunes of BASE. Without names the tasks are 0, 1 and so on."""
    from ..emr import save as save_artifact

    named = {}
    for i, text in enumerate(models):
        task, equals, model = text.partition("=")
        named[task if equals else str(i)] = model if equals else text
    if len(named) < len(models):
        raise FastmergeError("emr: two models have the same task; name each once")
    with progress("reading", quiet or as_json) as update:
        experts = save_artifact(base, named, out, dtype=dtype, progress=update)
    if as_json:
        print_json(experts)
    elif not quiet:
        print_facts([("artifact", experts.folder), ("tasks", ", ".join(experts.tasks))])


@emr.command(cls=Command)
@click.argument("artifact")
@click.argument("task")
@click.option("--out", required=True, type=click.Path(), help="Folder of the checkpoint.")
@click.option("--base", help="The base, where it is no longer what the artifact names.")
@together(JSON, QUIET)
def restore(artifact: str, task: str, out: str, base: str | None, as_json: bool, quiet: bool) -> None:
    """Write the checkpoint of the expert TASK of ARTIFACT."""
    from ..emr import restore as restore_expert

    collect_from_here()
    try:
        restore_expert(artifact, task, out, base=base)
    except FastmergeError:
        raise
    except (KeyError, ValueError) as error:
        raise FastmergeError(str(error.args[0])) from error
    if as_json:
        print_json({"checkpoint": out, "task": task})
    elif not quiet:
        print_facts([("checkpoint", out), ("task", task)])
