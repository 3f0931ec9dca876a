"""Merges of recipes with several documents: planned all together, merged one after the other, verified as one."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine import Report, RunOptions, run
from .engine.folders import partial_folder, real_target
from .engine.manifest import read_manifest, recipe_of
from .engine.publish import StagingFolder
from .engine.ranks import ALONE, Ranks
from .engine.running import feasible
from .engine.together import appear_to
from .engine.workplace import fits_in_memory, intermediates_of, place_on_disk
from .errors import CheckpointError, OutputError
from .plan import make_plan, plan_all
from .plan.documents import planning_of
from .plan.types import Plan
from .progress import Progress, of_bytes
from .recipe.pipeline import Pipeline, with_folders
from .recipe.types import Recipe

if TYPE_CHECKING:
    from .engine import VerifyReport

__all__ = ["Merged", "merge_all", "verify_all"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """One step that was merged.

    Attributes:
        name:   of the step; empty for the result.
        plan:   of it.
        report: of the run; None where the result was there.
    """

    name: str
    plan: Plan
    report: Report | None


def merge_all(
    pipeline: Pipeline,
    out: str | os.PathLike[str] | None,
    options: RunOptions | None = None,
    progress: Progress | None = None,
    *,
    plans: Sequence[Plan] | None = None,
    intermediates: str | os.PathLike[str] | None = None,
    lazy: bool = True,
    ranks: Ranks = ALONE,
    report: bool = False,
    **planning: Any,
) -> list[Merged]:
    """Merge every step of a pipeline; the last one into ``out``.

    Args:
        out:           folder of the result; None where it is named, too: it goes to the others.
        plans:         those of ``plan_all``, if they were made.
        intermediates: folder for the results of the other steps, which are kept. None removes them in the end; they are
                       in memory meanwhile if half of ``options.ram`` holds them, else on the disk, beside ``out``.
        lazy:          take over what is in ``intermediates`` already, if it was made from the same inputs.
        ranks:         the processes that share the merges; intermediate results are then on the disk, for all to see.
        report:        write a report of every result that is kept into its folder.
        planning:      of ``make_plan``.
    Raises:
        InvalidInput, FastmergeError: as ``make_plan`` and ``run``.
    """
    options = options or RunOptions()
    if pipeline.last is None and out is not None:
        raise OutputError(f"{out}: the documents of the recipe have several results; leave out the name of one")
    if out is None and pipeline.last is not None and not pipeline.last.name:
        raise OutputError("the result has no place: the document has no name, and no folder is given (OUT)")
    if plans is None:
        with plan_all(pipeline, **planning) as made:
            plans = made
    kept = [report and (intermediates is not None or step is pipeline.last) for step in pipeline.steps]
    for plan, reported in zip(plans, kept, strict=True):
        _check_report(plan, reported, options)
    if len(plans) == 1 and out is not None:
        told = _shifted(progress, 0, _tensor_bytes(plans[0]) + _report_bytes(plans[0], report))
        done = _run(plans[0], os.fspath(out), options, told, ranks)
        if report and ranks.first:
            done = _report(plans[0], out, done, options, progress, 0)
        return [Merged("", plans[0], done)]
    if out is not None:  # before any work, not when the last step begins
        last = next(plan for step, plan in zip(pipeline.steps, plans, strict=True) if step is pipeline.last)
        for plan in plans:
            feasible(plan.outputs, options)
        StagingFolder(Path(out), last, options.overwrite).check_target()
    total = sum(_tensor_bytes(plan) + _report_bytes(plan, of) for plan, of in zip(plans, kept, strict=True))
    beside = sum(plan.bytes_written for plan in (plans[:-1] if out is not None else plans))
    merged: list[Merged] = []
    folders: dict[str, str] = {}
    finished = 0
    with _place(out, intermediates, beside, options, ranks) as (place, options):
        for step, reported in zip(pipeline.steps, kept, strict=True):
            plan = replace(
                make_plan(with_folders(step, folders), **planning_of(step, pipeline, planning)),
                steps=_manifests(step, folders),
            )
            final = step is pipeline.last and out is not None
            target = os.fspath(out) if final and out is not None else str(place / step.name)
            found: Report | None = None
            if final or not lazy or not _first_says(ranks, functools.partial(_is_made, plan, target)):
                # What an earlier run left in a folder of ours is of no other use.
                ours = not final and (intermediates is None or not lazy)
                settings = replace(options, overwrite=True) if ours else options
                found = _run(plan, target, settings, _shifted(progress, finished, total), ranks)
                if reported and ranks.first:
                    found = _report(plan, target, found, options, _shifted(progress, 0, total), finished)
            if not final:
                appear_to(ranks, Path(target))
            merged.append(Merged(step.name, plan, found))
            folders[step.name] = target
            finished += _tensor_bytes(plan) + _report_bytes(plan, reported)
    return merged


def verify_all(out: str | os.PathLike[str], **options: Any) -> VerifyReport:
    """Verify an output as ``verify``; intermediate results that are gone are merged again, into a temporary folder.

    Raises:
        CheckpointError: also where an intermediate result comes out with other bytes.
    """
    from .engine import verify as verify_output

    manifest = read_manifest(Path(out))
    if not manifest.get("steps"):
        return verify_output(os.fspath(out), **options)
    with partial_folder(Path(os.path.realpath(out))) as scratch:
        return verify_output(os.fspath(out), manifest=_rebuilt(manifest, scratch, options), **options)


def _rebuilt(manifest: dict[str, Any], scratch: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest whose inputs all exist: intermediate results that are gone are merged into ``scratch``."""
    steps, inputs = manifest.get("steps", {}), []
    for item in manifest["inputs"]:
        name = next((name for name in steps if item["reference"].partition("+")[0] == name), None)
        if name is not None and not os.path.isdir(item["folder"]):
            item = _moved(item, _merge_again(name, _rebuilt(steps[name], scratch, options), scratch, options))
        inputs.append(item)
    return {**manifest, "inputs": inputs}


def _merge_again(name: str, manifest: dict[str, Any], scratch: Path, options: Mapping[str, Any]) -> str:
    target = scratch / name
    if not target.exists():
        recipe = recipe_of(manifest)
        folders = {item["reference"].partition("+")[0]: item["folder"] for item in manifest["inputs"]}
        plan = make_plan(
            with_folders(recipe, folders), allow_mixed_types=True, truncate_embeddings=manifest["truncated"]
        )
        settings = {key: options[key] for key in ("ram", "threads", "backend") if options.get(key) is not None}
        run(plan, str(target), RunOptions(**settings))
        if read_manifest(target)["tensors"] != manifest["tensors"]:
            raise CheckpointError(f"the intermediate result {name!r} comes out with other bytes than in the merge")
    return str(target)


def _moved(item: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return an input of a manifest with the files of another folder, which hold the same."""
    files = []
    for file in item["files"]:
        path = os.path.join(folder, file["name"])
        there = os.path.exists(path)
        files.append({**file, "path": path, "mtime_ns": os.stat(path).st_mtime_ns} if there else file)
    return {**item, "folder": folder, "files": files}


def _manifests(step: Recipe, folders: Mapping[str, str]) -> dict[str, Any]:
    """Return the manifests of the steps that a step uses."""
    used = {model.path for model in step.models} & folders.keys()
    return {name: read_manifest(Path(folders[name])) for name in sorted(used)}


def _is_made(plan: Plan, folder: str) -> bool:
    """True where ``folder`` holds the result of this very plan, from inputs that have not changed since."""
    try:
        manifest = read_manifest(Path(folder))
    except CheckpointError:
        return False
    recorded = [(file["path"], file["mtime_ns"]) for item in manifest["inputs"] for file in item["files"]]
    present = [(file.path, file.mtime_ns) for model in plan.models for file in model.files]
    return manifest["plan"] == plan.digest and recorded == present


@contextlib.contextmanager
def _place(
    out: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str] | None,
    nbytes: int,
    options: RunOptions,
    ranks: Ranks,
) -> Iterator[tuple[Path, RunOptions]]:
    """Yield the folder of intermediate results, and the options with the memory that is left beside them."""
    if folder is not None:
        yield Path(folder), options
        return
    if out is None:
        raise OutputError("all documents of the recipe are named; say where their results go (--intermediate-dir)")
    if ranks.count > 1:
        target = real_target(out)
        shared = contextlib.nullcontext(place_on_disk(target))
        with intermediates_of(target, in_memory=False) if ranks.first else shared as place:
            ranks.hear(b"")  # the first one has made the folder
            with ranks.answering():
                yield place, options
                ranks.collect(b"")  # nobody needs it any more
        return
    in_memory = 2 * nbytes <= options.ram and fits_in_memory(nbytes)
    with intermediates_of(real_target(out), in_memory) as place:
        yield place, replace(options, ram=options.ram - nbytes) if in_memory else options


def _first_says(ranks: Ranks, asked: Callable[[], bool]) -> bool:
    """Return, on every rank, what the first one finds."""
    return ranks.hear(b"yes" if ranks.first and asked() else b"") == b"yes"


def _tensor_bytes(plan: Plan) -> int:
    return sum(output.nbytes for output in plan.outputs)


def _run(plan: Plan, out: str, options: RunOptions, progress: Progress | None, ranks: Ranks = ALONE) -> Report:
    """Merge, and say so to the log."""
    _log.info("%s into %s", plan, out)
    for note in plan.notes:
        _log.info("note: %s", note)
    found = run(plan, out, options, progress, ranks)
    for note in found.notes:
        _log.info("note: %s", note)
    _log.info("%s: %s", out, found)
    return found


def _report_bytes(plan: Plan, wanted: bool) -> int:
    if not wanted:
        return 0
    from .merge_report import bytes_to_read

    return bytes_to_read(plan)


def _check_report(plan: Plan, wanted: bool, options: RunOptions) -> None:
    """Raise BudgetError where the memory is too small for the report: before the merge, not after it."""
    if wanted:
        from .merge_report import check_budget

        check_budget(plan, options.ram)


def _report(
    plan: Plan, folder: str | os.PathLike[str], found: Report, options: RunOptions, progress: Progress | None, done: int
) -> Report:
    """Write the report of a merge, and return ``found`` with its page; the progress goes on behind ``done``."""
    from .merge_report import bytes_to_read, write_report  # with torch, which merges do not need

    first = done + _tensor_bytes(plan)
    reads = bytes_to_read(plan)
    told = of_bytes(_shifted(progress, first, first + reads), reads)
    return replace(found, page=write_report(plan, folder, found, options.ram, told))


def _shifted(progress: Progress | None, done: int, total: int) -> Progress | None:
    return None if progress is None else lambda now, _: progress(done + now, total)
