"""The driver of a report: a second read of what was merged, and three files in the folder of the output."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..analysis.family import labels_of
from ..engine import Report
from ..engine.manifest import read_manifest
from ..engine.places import open_output
from ..plan.types import Plan
from .measuring import Account, measure_all
from .page import page_of
from .pairs import pair
from .summary import summarize
from .written import NAMES, table, write_files

__all__ = ["bytes_to_read", "write_report"]


def bytes_to_read(plan: Plan) -> int:
    """Return about how many bytes a report reads: inputs and output."""
    merged = [output for output in plan.outputs if output.group is not None]
    return sum(output.nbytes + sum(tensor.nbytes for tensor in output.inputs.every) for output in merged)


def write_report(
    plan: Plan,
    out: str | os.PathLike[str],
    report: Report | None,
    ram: int,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Write ``report.html``, ``report.csv`` and ``report.json`` into ``out``, what ``plan`` made; return the page.

    Args:
        report:   of the run; None where it is not known.
        ram:      memory budget in bytes.
        progress: called with the bytes that were read so far.
    Raises:
        BudgetError: the memory is too small.
        CheckpointError: an input changed since the merge.
    """
    folder = Path(os.path.realpath(out))
    checkpoint = open_output(str(folder), plan.training)
    pairs, layers = pair(plan, checkpoint)
    found = measure_all(plan, pairs, checkpoint.files, ram, progress)
    account = Account(plan, labels_of([model.reference for model in plan.models]), layers, found)
    manifest = read_manifest(folder)
    summary = summarize(account, folder.name, manifest["versions"], report)
    rows = table(account, manifest["tensors"])
    write_files(folder, page_of(account, summary).html() + "\n", rows, summary)
    return os.path.join(os.fspath(out), NAMES[0])
