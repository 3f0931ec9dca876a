"""From a recipe on the command line to its plans: what ``merge``, ``multi``, ``plan`` and ``check`` share."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidInput, Problem
from ..results import counted
from ..sizes import show_size
from ._mergekit import device_of, mergekit_flags, translate
from ._options import (
    BACKEND,
    DEVICE,
    JSON,
    PLUGIN,
    QUIET,
    RAM,
    SEED,
    SEMANTICS,
    SHARD_SIZE,
    STRICT,
    THREADS,
    VRAM,
    together,
)
from ._output import note, print_facts, print_json, print_table
from ._progress import phase

if TYPE_CHECKING:
    from ..plan.types import Plan
    from ..recipe.pipeline import Pipeline

CHECKING = together(SEED, SEMANTICS, PLUGIN, STRICT, JSON, QUIET, mergekit_flags())
PLANNING = together(
    SEED, SEMANTICS, PLUGIN, SHARD_SIZE, RAM, DEVICE, VRAM, STRICT, JSON, QUIET,
    mergekit_flags("out_shard_size", "cuda"),
)  # fmt: skip
RUNNING = together(
    THREADS, BACKEND, SEED, SEMANTICS, PLUGIN, SHARD_SIZE, RAM, DEVICE, VRAM, STRICT, JSON, QUIET,
    mergekit_flags("out_shard_size", "cuda", "num_threads"),
)  # fmt: skip

# Input tensors that no output uses, of those that are listed.
_MOST_DROPPED = 20
_PASSED = (
    "shard_size",
    "strict",
    "allow_mixed_types",
    "truncate_embeddings",
    "copy_tokenizer",
    "model_card",
    "state",
)


@dataclass(frozen=True)
class Planned:
    """A recipe that can be merged.

    Attributes:
        pipeline: its documents, in order.
        plans:    by document.
        options:  of the command line, with mergekit's taken in.
        planning: the options of ``make_plan``.
    """

    pipeline: Pipeline
    plans: list[Plan]
    options: dict[str, Any]
    planning: dict[str, Any]

    @property
    def silent(self) -> bool:
        return self.options["quiet"] or self.options["as_json"]


def prepare_gpus(given: dict[str, Any]) -> None:
    """Begin what GPUs need before a merge, while recipes and headers are read."""
    if (device := device_of(given)) != "cpu":
        from ..engine.targets import prepare

        prepare(device, given["ram"])


def planned(recipe: str, given: dict[str, Any], said: Sequence[str] = (), **more: Any) -> Planned:
    """Plan a recipe until the command ends, and print the notes on options and plans.

    ``said`` are notes on options of one command alone; ``more`` is of ``make_plan``.
    """
    texts = [*said]
    mapped = translate(given, texts.append)
    options = given | mapped
    if given["strict"] and texts:
        raise InvalidInput([Problem("options", text) for text in texts])
    silent = given["quiet"] or given["as_json"]
    for text in texts:
        note(text, silent)
    # A line of its own makes text of a recipe that came in one line.
    source = (sys.stdin.read() if sys.stdin else "") + "\n" if recipe == "-" else recipe  # None: it was closed
    name = "standard input" if recipe == "-" else "<recipe>"
    return planned_source(source, options, name, **more)


def planned_source(
    source: str, options: dict[str, Any], name: str = "<recipe>", made: bool = False, **more: Any
) -> Planned:
    """As ``planned``, of a path or text, with options in which mergekit's have been taken in.

    ``made`` is true of a recipe that the command ``name`` made.
    """
    silent = options["quiet"] or options["as_json"]
    phase("planning", silent)
    with _starting_little():
        from ..recipe.pipeline import load_pipeline

        pipeline = load_pipeline(
            source, semantics=options.get("semantics"), seed=options.get("seed"), name=name, made=made
        )
    from ..plan import plan_all  # of use to a recipe without mistakes

    planning = {name: options[name] for name in _PASSED if options.get(name) is not None}
    plans = click.get_current_context().with_resource(plan_all(pipeline, **planning, **more))
    for text in dict.fromkeys(text for plan in plans for text in plan.notes):
        note(text, silent)
    return Planned(pipeline, plans, options, planning)


@contextlib.contextmanager
def _starting_little() -> Iterator[None]:
    """Let packages that are loaded leave out what has no work here, and takes longer than a recipe.

    The threads of numpy's BLAS spin for 30 ms each when they start; for its plugins pydantic reads what every installed
    package says of itself.
    """
    ours = {"OPENBLAS_NUM_THREADS": "1", "PYDANTIC_DISABLE_PLUGINS": "__all__"}
    ours = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]  # the user's other programs and torch have their own


def show_plans(found: Planned) -> None:
    """Print what the merges will read, write and need."""
    several = len(found.plans) > 1
    if found.options["as_json"]:
        values = [_values(plan, found.options) for plan in found.plans]
        names = [step.name for step in found.pipeline.steps]
        steps = [{"name": name, **value} for name, value in zip(names, values, strict=True)]
        print_json(steps if several else values[0])
        return
    for step, plan in zip(found.pipeline.steps, found.plans, strict=True):
        if several:
            click.echo(f"{step.name or 'the result'}:")
        _show(plan, found.options)


def show_files(found: Planned) -> None:
    """Print the files that the merges read."""
    from ..plan.trust import listing

    rows = [row for plan in found.plans for row in listing(plan)]
    if found.options["as_json"]:
        print_json(rows)
        return
    keys = ("model", "name", "kind", "trusted", "bytes")
    print_table(keys, ([str(row[key]) for key in keys] for row in rows), numbers=1)


def _values(plan: Plan, options: dict[str, Any]) -> dict[str, Any]:
    from ..engine.forecast import forecast

    expected = forecast(plan, options["ram"], options["device"], options["vram"])
    copied = sum(output.method == "copy" for output in plan.outputs)
    return {
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


def _show(plan: Plan, options: dict[str, Any]) -> None:
    from ..engine.forecast import forecast

    expected = forecast(plan, options["ram"], options["device"], options["vram"])
    copied = sum(output.method == "copy" for output in plan.outputs)
    print_facts(
        [
            ("method", f"{plan.method} (semantics: {plan.semantics}, seed: {plan.seed})"),
            ("models", ", ".join(model.reference for model in plan.models)),
            ("tensors", f"{len(plan.outputs)}: {len(plan.outputs) - copied} merged, {copied} copied"),
            ("dropped", f"{len(plan.dropped)} input tensors"),
            *(
                (f"  {plan.models[item.model].reference}", f"{item.name}: {item.reason}")
                for item in plan.dropped[:_MOST_DROPPED]
            ),
            *([("", f"and {left} more")] if (left := len(plan.dropped) - _MOST_DROPPED) > 0 else []),
            ("reads", show_size(plan.bytes_read)),
            ("writes", f"{show_size(plan.bytes_written)} in {counted(len(plan.shards), 'file')}"),
            (
                "memory",
                f"at most {show_size(expected.memory)} beyond the interpreter and its packages, of the"
                f" {show_size(expected.budget)} that --ram allows",
            ),
            *(
                [("largest", f"{expected.largest}: {show_size(expected.largest_bytes)} of inputs")]
                if expected.largest
                else []
            ),
            ("read twice", f"{len(expected.read_twice)} tensors that do not fit the memory whole"),
            (
                "bound",
                f"{expected.seconds:.2f} s at {show_size(expected.read_rate)}/s, the rate at which a sample of the"
                " inputs was read just now; writes at the same rate",
            ),
        ]
    )
