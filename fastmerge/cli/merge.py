"""``fastmerge merge``, and its two dry forms ``plan`` and ``check``."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidInput, Problem
from ..sizes import show_size
from ._errors import Command
from ._mergekit import mergekit_flags, translate
from ._options import (
    BACKEND,
    DEVICE,
    JSON,
    PLUGIN,
    QUIET,
    RAM,
    RECIPE,
    SEED,
    SEMANTICS,
    SHARD_SIZE,
    STRICT,
    THREADS,
    VRAM,
    together,
)
from ._output import note, print_facts, print_json
from ._progress import progress

if TYPE_CHECKING:
    from ..engine import Report
    from ..plan.types import Plan

PLANNING = together(SEED, SEMANTICS, PLUGIN, SHARD_SIZE, RAM, DEVICE, VRAM, STRICT, JSON, QUIET, mergekit_flags)


@click.command(cls=Command)
@RECIPE
@click.argument("out", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@together(THREADS, BACKEND)
@PLANNING
def merge(recipe: str, out: str, overwrite: bool, dry_run: bool, backend: str, **given: Any) -> None:
    """Merge the models of RECIPE (a file, or - for standard input) into the folder OUT.

    An interrupted merge goes on where it stopped when the same command is run again.
    """
    plan, options = _planned(recipe, given)
    if dry_run:
        _show_plan(plan, options)
        return
    from ..engine import RunOptions, run

    if slow := _why_slow(options["device"], backend):
        note(slow, given["quiet"] or given["as_json"])
    settings = RunOptions(
        ram=options["ram"], threads=options["threads"], device=options["device"], vram=options["vram"],
        backend=backend, overwrite=overwrite,
    )  # fmt: skip
    with progress("merging", given["quiet"] or given["as_json"]) as update:
        report = run(plan, out, settings, update)
    for text in report.notes:
        note(text, given["quiet"] or given["as_json"])
    if given["as_json"]:
        print_json(_report_values(report))
    elif not given["quiet"]:
        _show_report(out, plan, report)


def _why_slow(device: str, backend: str) -> str | None:
    """Return what is missing for a merge at full speed on the processor, or None."""
    from ..engine.targets import choose
    from ..kernels import why_no_cpu_extension

    on_cpu = backend == "auto" and device in ("cpu", "auto") and choose(device, None).names == ("cpu",)
    return why_no_cpu_extension() if on_cpu else None


@click.command(cls=Command)
@RECIPE
@PLANNING
def plan(recipe: str, **given: Any) -> None:
    """Print what a merge of RECIPE would read, write and need. Reads headers only."""
    _show_plan(*_planned(recipe, given))


@click.command(cls=Command)
@RECIPE
@PLANNING
def check(recipe: str, **given: Any) -> None:
    """Check RECIPE and its models, from headers and configs alone. Reports every problem at once."""
    found, _ = _planned(recipe, given)
    if given["as_json"]:
        print_json({"ok": True, "notes": found.notes})
    elif not given["quiet"]:
        verdict = f"no problem, {len(found.notes)} to note" if found.notes else "nothing is wrong"
        click.echo(f"{recipe}: {verdict}; {len(found.outputs)} tensors of {len(found.models)} models")


def _planned(recipe: str, given: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """Return the plan, and the options with mergekit's flags taken in. Prints the notes of both."""
    from ..api import check as check_recipe

    silent = given["quiet"] or given["as_json"]
    said: list[str] = []
    mapped = translate(given, said.append)
    options = given | mapped
    if given["strict"] and said:
        raise InvalidInput([Problem("options", text) for text in said])
    for text in said:
        note(text, silent)
    # A line of its own makes text of a recipe that came in one line.
    source = sys.stdin.read() + "\n" if recipe == "-" else recipe
    names = ("allow_mixed_types", "truncate_embeddings", "copy_tokenizer", "model_card")
    plan = check_recipe(
        source,
        semantics=options["semantics"],
        seed=options["seed"],
        shard_size=options["shard_size"],
        strict=options["strict"],
        **{name: mapped[name] for name in names if name in mapped},
    )
    for text in plan.notes:
        note(text, silent)
    return plan, options


def _show_plan(plan: Plan, options: dict[str, Any]) -> None:
    from ..engine.forecast import forecast

    expected = forecast(plan, options["ram"], options["device"], options["vram"])
    copied = sum(output.method == "copy" for output in plan.outputs)
    if options["as_json"]:
        print_json(
            {
                "method": plan.method,
                "semantics": plan.semantics,
                "seed": plan.seed,
                "models": [model.reference for model in plan.models],
                "tensors": len(plan.outputs),
                "copied": copied,
                "dropped": [
                    {"model": plan.models[item.model].reference, "name": item.name, "reason": item.reason}
                    for item in plan.dropped
                ],
                "shards": {shard.filename: shard.nbytes for shard in plan.shards},
                "bytes_read": plan.bytes_read,
                "bytes_written": plan.bytes_written,
                "notes": plan.notes,
                **dataclasses.asdict(expected),
            }
        )
        return
    print_facts(
        [
            ("method", f"{plan.method} (semantics: {plan.semantics}, seed: {plan.seed})"),
            ("models", ", ".join(model.reference for model in plan.models)),
            ("tensors", f"{len(plan.outputs)}: {len(plan.outputs) - copied} merged, {copied} copied"),
            ("dropped", f"{len(plan.dropped)} input tensors"),
            *((f"  {plan.models[item.model].reference}", f"{item.name}: {item.reason}") for item in plan.dropped[:20]),
            ("reads", show_size(plan.bytes_read)),
            ("writes", f"{show_size(plan.bytes_written)} in {len(plan.shards)} files"),
            ("memory", f"at most {show_size(expected.memory)} beyond the interpreter with torch"),
            ("largest", f"{expected.largest}: {show_size(expected.largest_bytes)} of inputs"),
            ("read twice", f"{len(expected.read_twice)} tensors that do not fit the memory whole"),
            (
                "bound",
                f"{expected.seconds:.2f} s at {show_size(expected.read_rate)}/s, the rate at which a sample of the"
                " inputs was read just now; writes at the same rate",
            ),
        ]
    )


def _report_values(report: Report) -> dict[str, Any]:
    return {
        **dataclasses.asdict(report),
        "bound_seconds": report.bound_seconds,
        "distance": report.distance,
        "bounded_by": report.bounded_by,
    }


def _show_report(out: str, plan: Plan, report: Report) -> None:
    moved = report.bytes_read + report.bytes_written
    resumed = f", {report.resumed} of them taken over from an interrupted run" if report.resumed else ""
    print_facts(
        [
            ("output", f"{out}: {report.tensors} tensors in {len(plan.shards)} files{resumed}"),
            ("read", show_size(report.bytes_read)),
            ("written", show_size(report.bytes_written)),
            ("time", f"{report.seconds:.2f} s ({show_size(moved / report.seconds)}/s), {report.cpu_seconds:.2f} CPU-s"),
            (
                "bound",
                f"{report.bound_seconds:.2f} s, by {report.bounded_by}; the run took {report.distance:.2f} times that",
            ),
            ("device", f"{', '.join(report.devices)} ({report.device_reason})"),
            ("peak memory", f"{show_size(report.peak_rss)}, with the interpreter and torch"),
            *([("peak on a GPU", show_size(report.peak_vram))] if report.peak_vram else []),
        ]
    )
