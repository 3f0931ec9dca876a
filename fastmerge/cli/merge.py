"""``fastmerge merge`` and ``multi``, and the dry forms ``plan`` and ``check``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any

import click

from ..results import counted
from ..sizes import show_size
from ._errors import Command
from ._explaining import show_explanations
from ._options import DEAD_AFTER, DISTRIBUTED, FORMAT, RANK_TIMEOUT, RECIPE, together
from ._output import note, print_facts, print_json
from ._planning import CHECKING, PLANNING, RUNNING, Planned, planned, prepare_gpus, show_files, show_plans
from ._progress import progress

if TYPE_CHECKING:
    from ..engine import Report
    from ..engine.machine import Limit
    from ..engine.ranks import Ranks
    from ..pipelines import Merged
    from ..plan.types import AsState

PUSHING = together(
    click.option("--push-to-hub", metavar="REPO", help="Upload the result to owner/name on the Hugging Face hub."),
    click.option("--private", is_flag=True, default=None, help="Make that repository private, where it is made."),
)
# Seconds of a run above which it is said what bounded it: below, starting up is most of it.
LONG = 5.0
# How often a run takes that bound, above which it is said what else it did.
FAR = 1.5

REPORT = click.option(
    "--report", is_flag=True, help="Write report.html into OUT: what the merge did, by a second read of the inputs."
)

MERGING = together(
    click.option("--overwrite", is_flag=True, help="Replace an existing output of fastmerge."),
    click.option("--allow-nonfinite", is_flag=True, help="Let NaN and infinity pass, in inputs and results."),
    REPORT,
    click.option("--dry-run", is_flag=True, help="Print the plan and stop."),
    RUNNING,
)


@click.command(cls=Command)
@RECIPE
@click.argument("out", type=click.Path())
@FORMAT
@PUSHING
@DISTRIBUTED
@RANK_TIMEOUT
@MERGING
def merge(
    recipe: str,
    out: str,
    push_to_hub: str | None,
    private: bool | None,
    dry_run: bool,
    distributed: bool,
    rank_timeout: float | None,
    format: str,
    key: str | None,
    like: str | None,
    **given: Any,
) -> None:
    """Merge the models of RECIPE (a file, or - for standard input) into the folder OUT.

    An interrupted merge goes on where it stopped when the same command is run again. The documents of a recipe of
    several are merged one after the other; fastmerge multi keeps the results of all of them.
    """
    if private and push_to_hub is None:
        raise click.UsageError("--private is of the repository of --push-to-hub")
    if push_to_hub is not None and format != "hf":
        raise click.UsageError(f"--push-to-hub takes a folder of the hub, and --format {format} makes another one")
    given["state"] = state_of(format, key, like)
    shared = ranks_of(distributed, rank_timeout, idle=dry_run)
    if dry_run:
        show_plans(planned(recipe, given))
        return
    if not distributed:
        prepare_gpus(given)
    with shared as ranks:
        if not ranks.first:  # the first one does the talking
            given |= {"quiet": True, "as_json": False}
        found = planned(recipe, given)
        destination = None
        if push_to_hub is not None and ranks.first:
            from ..hub import Destination

            # Known to be reachable before hours of merging.
            destination = Destination(push_to_hub, private=private)
        run_plans(found, out, ranks=ranks)
        if destination is not None:
            note(f"pushed: {destination.push(out)}", found.silent)


def state_of(format: str, key: str | None, like: str | None) -> AsState | None:
    """Return the option of ``make_plan`` for an output in a format."""
    if format == "hf" and key is like is None:  # most are, and planning is loaded when the recipe is read
        return None
    from ..plan.state import state_of

    return state_of(format, key, like)


def ranks_of(distributed: bool, timeout: float | None, idle: bool = False) -> contextlib.AbstractContextManager[Ranks]:
    """Return the ranks that a launcher started, where they share a merge, or this process alone.

    ``idle`` says that nothing is merged; UsageError where a timeout for others is given, and there are none.
    """
    if timeout is not None and not distributed:
        raise click.UsageError("--rank-timeout is of the processes of --distributed; give both, or neither")
    if distributed and not idle:
        from ..engine.launched import Place
        from ..engine.launched_ranks import LaunchedRanks

        return LaunchedRanks(Place.of(os.environ), timeout or DEAD_AFTER)
    if not idle and os.environ.get("RANK") and os.environ.get("WORLD_SIZE", "1") != "1":
        note("this is one of several processes that a launcher started; --distributed shares the merge among them")
    from ..engine.ranks import ALONE

    return contextlib.nullcontext(ALONE)


@click.command(cls=Command)
@RECIPE
@click.argument("out", type=click.Path(), required=False)
@click.option("--out-path", type=click.Path(), help="Same as OUT.")
@click.option("-I", "--intermediate-dir", type=click.Path(), help="Folder that keeps the results of named documents.")
@click.option("--lazy/--no-lazy", default=True, help="Take over results that are there.  [default: lazy]")
@FORMAT
@DISTRIBUTED
@RANK_TIMEOUT
@MERGING
def multi(
    recipe: str,
    out: str | None,
    out_path: str | None,
    intermediate_dir: str | None,
    lazy: bool,
    dry_run: bool,
    distributed: bool,
    rank_timeout: float | None,
    format: str,
    key: str | None,
    like: str | None,
    **given: Any,
) -> None:
    """Merge the documents of RECIPE, which use each other's results by name; the one without a name goes to OUT.

    With --format dcp, results that other documents use are folders of the hub all the same.
    """
    if out is not None and out_path is not None:
        raise click.UsageError(f"OUT is {out} and --out-path {out_path}; give one")
    given["state"] = state_of(format, key, like)
    shared = ranks_of(distributed, rank_timeout, idle=dry_run)
    if dry_run:
        show_plans(planned(recipe, given))
        return
    if not distributed:
        prepare_gpus(given)
    with shared as ranks:
        if not ranks.first:
            given |= {"quiet": True, "as_json": False}
        found = planned(recipe, given)
        run_plans(found, out or out_path, intermediates=intermediate_dir, lazy=lazy, ranks=ranks)


@click.command(cls=Command)
@RECIPE
@click.option(
    "--explain",
    metavar="TENSOR",
    help="Say what is done to a tensor (a name, a part of it, or a pattern with *): method, parameters, sources.",
)
@click.option("--files", is_flag=True, help="List the files that are read, and how far each is trusted.")
@PLANNING
def plan(recipe: str, explain: str | None, files: bool, **given: Any) -> None:
    """Print what a merge of RECIPE would read, write and need.

    Reads headers, and a sample of the weights to tell the least time that the merge takes.
    """
    if files and explain is not None:
        raise click.UsageError("--files and --explain are two listings; ask for one")
    if files:
        show_files(planned(recipe, given))
    elif explain is None:
        show_plans(planned(recipe, given))
    else:
        show_explanations(planned(recipe, given, explain=True), explain)


@click.command(cls=Command)
@RECIPE
@CHECKING
def check(recipe: str, **given: Any) -> None:
    """Check RECIPE and its models, from headers and configs alone. Reports every problem at once."""
    found = planned(recipe, given)
    recipe = "standard input" if recipe == "-" else recipe
    if given["as_json"]:
        print_json({"ok": True, "notes": list(dict.fromkeys(text for plan in found.plans for text in plan.notes))})
    elif not given["quiet"]:
        for step, plan in zip(found.pipeline.steps, found.plans, strict=True):
            name = f"{recipe}: {step.name}" if len(found.plans) > 1 and step.name else recipe
            verdict = f"no problem, {len(plan.notes)} to note" if plan.notes else "nothing is wrong"
            tensors, models = counted(len(plan.outputs), "tensor"), counted(len(plan.models), "model")
            click.echo(f"{name}: {verdict}; {tensors} of {models}")


def run_plans(found: Planned, out: str | None, **how: Any) -> None:
    """Carry out what is planned into ``out``, and print what came of it."""
    from ..engine import RunOptions
    from ..pipelines import merge_all

    options, silent = found.options, found.silent
    if slow := _why_slow(options["device"], options["backend"]):
        note(slow, silent)
    settings = RunOptions(
        ram=options["ram"], threads=options["threads"], device=options["device"], vram=options["vram"],
        backend=options["backend"], overwrite=options["overwrite"], allow_nonfinite=options["allow_nonfinite"],
    )  # fmt: skip
    tensors = sum(len(plan.outputs) for plan in found.plans)
    with progress(f"merging {tensors} tensors", silent, last="publishing") as update:
        merged = merge_all(
            found.pipeline,
            out,
            settings,
            update,
            plans=found.plans,
            report=bool(options.get("report")),
            **how,
            **found.planning,
        )
    for text in dict.fromkeys(text for item in merged if item.report for text in item.report.notes):
        note(text, silent)
    if options["as_json"]:
        values = [{"name": item.name, **(_report_values(item.report, out) if item.report else {})} for item in merged]
        print_json(values if len(values) > 1 else {k: v for k, v in values[0].items() if k != "name"})
    elif not options["quiet"]:
        _show_reports(out, how.get("intermediates"), merged)


def _why_slow(device: str, backend: str) -> str | None:
    """Return what is missing for a merge at full speed on the processor, or None."""
    from ..engine.targets import choose
    from ..kernels import why_no_cpu_extension

    on_cpu = backend == "auto" and device in ("cpu", "auto") and choose(device, None).names == ("cpu",)
    return why_no_cpu_extension() if on_cpu else None


def _show_reports(out: str | None, intermediates: str | None, merged: list[Merged]) -> None:
    for i, item in enumerate(merged):
        kept = f"{item.name} (not kept)" if intermediates is None else os.path.join(intermediates, item.name)
        where = out if i == len(merged) - 1 and out is not None else kept
        if item.report is None:
            click.echo(f"{where}: was there already, made from the same inputs")
        elif where is not None:
            _show_report(where, item)


def _report_values(report: Report, out: str | None) -> dict[str, Any]:
    limit = _limit(report, out or ".")
    return {
        **dataclasses.asdict(report),
        "bound_seconds": report.bound_seconds,
        "distance": report.distance,
        "bounded_by": report.bounded_by,
        "machine_bound": limit and {**dataclasses.asdict(limit), "seconds": limit.seconds},
    }


def _show_report(out: str, item: Merged) -> None:
    plan, report = item.plan, item.report
    assert report is not None
    moved = report.bytes_read + report.bytes_written
    resumed = f"; {report.resumed} of them taken over from an interrupted run" if report.resumed else ""
    rate = f"{show_size(moved / report.seconds)}/s"
    click.echo(
        f"merged {report.tensors} tensors into {out}: {show_size(report.bytes_written)} written in "
        f"{report.seconds:.2f} s, {rate}{resumed}"
    )
    print_facts(
        [
            ("read", show_size(report.bytes_read)),
            ("written", f"{show_size(report.bytes_written)} in {counted(len(plan.shards), 'file')} of weights"),
            ("time", f"{report.seconds:.2f} s ({rate}), {report.cpu_seconds:.2f} CPU-s"),
            *([("bound", _bound(report, limit))] if (limit := _limit(report, out)) else []),
            ("device", f"{', '.join(report.devices)} ({report.device_reason})"),
            ("peak memory", f"{show_size(report.peak_rss)}, with the interpreter and its packages"),
            *([("peak on a GPU", show_size(report.peak_vram))] if report.peak_vram else []),
            *([("report", report.page)] if report.page is not None else []),
        ]
    )


def _limit(report: Report, out: str) -> Limit | None:
    """Return what bounded a run that took long, of what this machine can do."""
    if report.seconds <= LONG:
        return None
    from ..engine.machine import Machine, limit_of

    return limit_of(Machine.of_user().limits_of(report, os.path.dirname(os.path.abspath(out))))


def _bound(report: Report, limit: Limit) -> str:
    """Return in words how near a run came to it, and what kept it away."""
    from ..engine.report import DOING

    times = report.seconds / limit.seconds
    away = f", most of it {DOING[report.bounded_by]}" if times > FAR else ""
    return f"{limit}; the merge took {times:.2f} times that{away}"
