"""What a run that stops leaves: what is finished, with a word about it; nothing where no run could go on from it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from ..errors import FastmergeError, InputChanged, Refused
from ..plan.types import OutputTensor, Plan
from ..sizes import show_size
from .dealing import taken_over, unfinished
from .files import release
from .journal import read_journals
from .leftovers import leftovers_of
from .parts import Part, recorded
from .publish import StagingFolder, plan_of


@contextlib.contextmanager
def accounted(staging: StagingFolder, plan: Plan) -> Iterator[None]:
    """Tidy the partial folder when the block is left by an exception, and let its message say what is kept."""
    try:
        yield
    except BaseException as error:
        said = [str(error)]
        with contextlib.suppress(OSError, FastmergeError):  # the disk may be what failed: the error itself counts
            if not staging.out.exists() and plan_of(staging.target) == plan.digest:
                said.append(f"the output is complete, in {staging.target}")
            said += [_leave(staging, plan, error), *other_partials(staging)]
        if isinstance(error, FastmergeError | KeyboardInterrupt):
            error.args = ("; ".join(filter(None, said)),)
        raise


def other_partials(staging: StagingFolder) -> list[str]:
    """Return a sentence about every partial output that another merge left for the same target."""
    return [
        f"another merge into this folder stopped and left {leftover.path} ({show_size(leftover.nbytes)}); "
        f"fastmerge clean {staging.target} removes it"
        for leftover in leftovers_of(staging.target)
        if leftover.path != staging.folder and leftover.path.is_dir() and not leftover.in_use
    ]


def _leave(staging: StagingFolder, plan: Plan, error: BaseException) -> str:
    staging.recover()
    if not staging.folder.exists():
        return ""
    finished = taken_over(plan.outputs, read_journals(staging.journal, plan))
    if not finished or isinstance(error, Refused | InputChanged):
        staging.discard()
        return "nothing is left of it" if isinstance(error, KeyboardInterrupt) else ""
    left = unfinished(plan.outputs, finished)
    _release(staging, plan, left)
    kept = sum(output.nbytes for output in plan.outputs) - sum(output.nbytes for output in left)
    parts = sum(isinstance(output, Part) for output in recorded(plan.outputs, finished))
    beside = f" and {parts} parts of others" if parts else ""
    return (
        f"stopped with {len(finished) - parts} of {len(plan.outputs)} tensors finished{beside}, in {staging.folder} "
        f"({show_size(kept)}); the same command goes on from there, and fastmerge clean {staging.target} removes it"
    )


def _release(staging: StagingFolder, plan: Plan, left: Sequence[OutputTensor]) -> None:
    """Give back the disk space that was reserved for what is not finished."""
    for number, shard in enumerate(plan.shards):
        outputs = [output for output in left if output.shard == number]
        with contextlib.suppress(OSError):  # some file systems have no holes
            places = [place for output in outputs for place in shard.places(output.offset, output.nbytes)]
            ranges = [(place, stop - start) for start, stop, place in places if stop > start]
            release(os.path.join(staging.out, shard.filename), ranges)
