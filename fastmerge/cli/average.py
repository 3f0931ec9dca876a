"""``fastmerge average``: soups and windows of checkpoints."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import click

from ..devices.names import DEFAULT
from ._errors import Command
from ._garbage import collect_from_here
from ._options import (
    BACKEND,
    CONFIG_SOURCE,
    DEVICE,
    DISTRIBUTED,
    FLOATS,
    FORMAT,
    JSON,
    NAMES,
    QUIET,
    RAM,
    RANK_TIMEOUT,
    SHARD_SIZE,
    STRICT,
    THREADS,
    VRAM,
    together,
)
from ._output import note, print_facts, print_json, print_table
from ._planning import planned_source, prepare_gpus, show_plans
from .merge import REPORT, ranks_of, run_plans, state_of

if TYPE_CHECKING:
    from ..averaging import Average, Trial


class Numbers(click.ParamType):
    """Numbers between commas: 0.5,0.3,0.2."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        try:
            return [float(number) for number in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 3,2,1", param, ctx)


_COUNTING = together(
    click.option(
        "--schedule",
        default="uniform",
        show_default=True,
        help="How much each counts: uniform, linear, ema:DECAY, swa, lawa:K, warm, 1-sqrt, cosine, decay:F1,F2,...",
    ),
    click.option("--weights", type=Numbers(), metavar="W,W,...", help="One per checkpoint; divided by their sum."),
    click.option("--counts", type=Numbers(), metavar="N,N,...", help="Samples per checkpoint (FedAvg)."),
)
_CHOOSING = together(
    click.option("--from", "start", type=int, metavar="STEP", help="The first step that is taken."),
    click.option("--to", "stop", type=int, metavar="STEP", help="The last step that is taken."),
    click.option("--every", type=click.IntRange(min=1), metavar="N", help="Each N-th, counted from the last one."),
    click.option("--last", type=click.IntRange(min=1), metavar="K", help="The K last ones."),
)


@click.command(cls=Command)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.argument("out", type=click.Path())
@_COUNTING
@_CHOOSING
@click.option("--base", metavar="MODEL", help="Model that adapters are added to before they are averaged.")
@click.option("--dtype", type=click.Choice(FLOATS), help="Of OUT.  [default: the inputs']")
@click.option(
    "--greedy", metavar="SCORE", help="Make a greedy soup by a command or module:function that scores a folder."
)
@click.option("--minimize", is_flag=True, help="Less is better, of the scores of --greedy.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output of fastmerge.")
@click.option("--allow-nonfinite", is_flag=True, help="Let NaN and infinity pass, in inputs and results.")
@REPORT
@click.option("--dry-run", is_flag=True, help="Print the weights and the plan and stop.")
@click.option("--show-recipe", is_flag=True, help="Print the average as a recipe of fastmerge merge and stop.")
@together(FORMAT, NAMES, CONFIG_SOURCE, DISTRIBUTED, RANK_TIMEOUT)
@together(THREADS, RAM, DEVICE, VRAM, BACKEND, SHARD_SIZE, STRICT, JSON, QUIET)
def average(
    checkpoints: tuple[str, ...],
    out: str,
    greedy: str | None,
    minimize: bool,
    dry_run: bool,
    show_recipe: bool,
    distributed: bool,
    rank_timeout: float | None,
    format: str,
    key: str | None,
    like: str | None,
    **given: Any,
) -> None:
    """Average CHECKPOINTs (folders, hub ids, or patterns in quotes) into the folder OUT.

    \b
    fastmerge average 'run/checkpoint-*' soup
    fastmerge average 'run/checkpoint-*' out --last 10 --schedule ema:0.8
    fastmerge average client-a client-b out --counts 1200,300
    fastmerge average 'sweep/*' best --greedy 'python score.py'

    Checkpoints whose names differ only in numbers are taken in the order of these, the oldest first; others, and those
    with --weights or --counts, in the order given. Sums are float32 in that order, rounded once. docs/averages.md has
    the formula of each schedule.
    """
    from ..averaging import average_of

    if _holds_a_model(out):
        what = "OUT is the last argument: name a new folder behind the checkpoints"
        raise click.UsageError(f"{out} holds a model already, and would be written to; {what}")
    given["device"] = given["device"] or DEFAULT
    names = ("schedule", "weights", "counts", "start", "stop", "every", "last")
    how = {name: given.pop(name) for name in names}
    kind = {name: given.pop(name) for name in ("base", "dtype", "names", "config_source")}
    if greedy is not None:
        _refuse(
            greedy=greedy,
            **how,
            **{
                "dry-run": dry_run,
                "show-recipe": show_recipe,
                "distributed": distributed,
                "rank-timeout": rank_timeout,
                "format": None if format == "hf" else format,
                "key": key,
                "like": like,
            },
        )
        _greedy(checkpoints, out, greedy, {"minimize": minimize, **kind, **given})
        return
    if minimize:
        raise click.UsageError("--minimize is of the scores of --greedy")
    given["state"] = state_of(format, key, like)
    shared = ranks_of(distributed, rank_timeout, idle=dry_run or show_recipe)
    if not (distributed or dry_run or show_recipe):
        prepare_gpus(given)
    with shared as ranks:
        if not ranks.first:  # the first one does the talking
            given |= {"quiet": True, "as_json": False}
        found = average_of(checkpoints, **how, names_table=kind.pop("names"), **kind)
        silent = given["quiet"] or given["as_json"]
        for text in found.notes:
            note(text, silent)
        if show_recipe:
            click.echo(found.recipe, nl=False)
            return
        plans = planned_source(found.recipe, given, "average", made=True)
        if dry_run:
            if not silent:
                _show_weights(found)
            show_plans(plans)
            return
        if not silent:
            first, last = (f"{found.models[k]} ({found.weights[k]:.4g})" for k in (0, -1))
            window = f"{len(found.models)}, from {first} to {last}" if len(found.models) > 1 else f"{first} alone"
            print_facts([("average", f"of {window}")])
        run_plans(plans, out, ranks=ranks)


def _holds_a_model(out: str) -> bool:
    """True for a folder of a model that fastmerge did not write."""
    names = os.listdir(out) if os.path.isdir(out) else []
    return not {"config.json", ".metadata"}.isdisjoint(names) and "fastmerge.json" not in names


def _show_weights(found: Average) -> None:
    rows = [(model, f"{weight:.6g}") for model, weight in zip(found.models, found.weights, strict=True)]
    print_table(("checkpoint", "weight"), rows, numbers=1)


def _refuse(**options: Any) -> None:
    """Refuse options that mean nothing to a greedy soup."""
    greedy = options.pop("greedy")
    spelled = {"start": "from", "stop": "to"}
    given = [f"--{spelled.get(name, name)}" for name, value in options.items() if value not in (None, False, "uniform")]
    if given:
        raise click.UsageError(f"{', '.join(given)} and --greedy {greedy}: a greedy soup chooses and counts by itself")


def _greedy(checkpoints: tuple[str, ...], out: str, score: str, options: dict[str, Any]) -> None:
    from ..averaging import greedy_soup

    silent = options.pop("quiet") or options["as_json"]
    as_json = options.pop("as_json")

    def said(trial: Trial) -> None:
        verdict = "" if len(trial.models) == 1 else ", joins" if trial.kept else ", stays out"
        place = f" as part {len(trial.models)}" if len(trial.models) > 1 else ""
        note(f"{trial.models[-1]}{place}: {trial.score:g}{verdict}", silent)

    collect_from_here()  # it merges many times, and a score in Python makes garbage of its own
    found = greedy_soup(checkpoints, out, score, said=said, **options)
    if as_json:
        print_json(dataclasses.asdict(found))
    elif not silent:
        facts = [("output", f"{out}: {found.report.tensors} tensors"), ("score", f"{found.score:g}")]
        facts += [("report", found.report.page)] if found.report.page is not None else []
        print_facts([*facts, *((f"part {k}", model) for k, model in enumerate(found.models, 1))])
