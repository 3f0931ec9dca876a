"""The driver of a merge of shards: survey together, then each rank applies to what it holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...sizes import show_size
from ..census import Round, take_censuses
from ..driver import merge_sources, solve_without_data
from ..source import Chunk
from .dealing import ask_dealt, merge_dealt
from .jobs import ShardJob, named, windows
from .local import apply_by_pieces, apply_to_part, localized
from .ranks import Agreement, Ranks
from .surveys import ask_window, solve_window
from .together import merge_together

_LOG = logging.getLogger("fastmerge.shards")


def merge_shards(jobs: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> None:
    """Merge many tensors; the bits are those of one process that holds them whole. A collective call.

    Every rank has the same jobs in the same order. Messages are small sums, a few per window of tensors, and the
    elements of cut chunks (see ``source.put_together``); methods that need no survey send nothing. Tensors that a
    method takes whole are dealt out (see ``dealing``), or merged together (see ``together``): ``ShardJob.together`` is
    the rule, and the log says what it chose. The bits of what is merged together are not those of one process.
    """
    merge_sources([job.local for job in jobs if job.alone])
    jobs = _after_censuses([job for job in jobs if not job.alone], ranks, agreement)
    merge_sources([job.local for job in jobs if job.at_once and (job.layout.whole or job.apart)])
    at_once = [job for job in jobs if job.at_once and not (job.layout.whole or job.apart)]
    together = [job for job in at_once if job.together]
    uncertified = merge_together(together, ranks, agreement)
    dealt = [job for job in at_once if not job.together] + uncertified
    if ranks.position == 0:
        _tell(dealt, together, uncertified, len(ranks))
        if sliced := [job for job in jobs if job.by_slices]:
            _LOG.info("merged where they lie, since ranks hold whole rows of them: %s", named(sliced))
    merge_dealt(dealt, ranks, agreement)
    _merge_by_parts([job for job in jobs if not job.at_once], ranks, agreement)


def _tell(dealt: Sequence[ShardJob], together: Sequence[ShardJob], uncertified: Sequence[ShardJob], ranks: int) -> None:
    """Say how tensors are merged that a method takes whole."""
    if dealt:
        largest = max(dealt, key=lambda job: job.rank_bytes)
        _LOG.info(
            "dealt out to %d ranks, each merged whole by one: %s; %s takes its rank %s",
            ranks, named(dealt), largest.group.name, show_size(largest.rank_bytes),
        )  # fmt: skip
    if together:
        _LOG.warning(
            "merged by all ranks together, being too large for one of them, not with the bits of one process: %s",
            named(together),
        )
    if uncertified:
        _LOG.warning("not certified together, and so dealt out after all: %s", named(uncertified))


def _merge_by_parts(jobs: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> None:
    """Merge tensors of which each rank merges the part that it holds."""
    steps = [solve_without_data(job.method, job.group) for job in jobs]
    placeless = []
    for job, step in zip(jobs, steps, strict=True):
        if step is None:
            continue
        local = localized(step, job.layout.runs)
        if local is step:  # many small ones go side by side
            placeless.append(job)
        elif local is not None:
            local(job.out, Chunk.of(job.inputs))
        else:
            apply_by_pieces(step, job.layout.runs, job.out, job.inputs)
    merge_sources([job.local for job in placeless])
    for window in windows([job for job, step in zip(jobs, steps, strict=True) if step is None], len(ranks)):
        for job, step in zip(window, solve_window(window, ranks, agreement), strict=True):
            apply_to_part(step, job.layout.runs, job.out, job.inputs)


def _after_censuses(jobs: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> Sequence[ShardJob]:
    """Return the jobs, which know what the censuses found that their methods take of all of them."""
    asking = {job.group.name: job for job in jobs if job.method.censuses(job.group)}

    def take(names: Sequence[str], found: dict[str, Any]) -> Round:
        asked = [asking[name] for name in names]
        taken = ask_dealt([job for job in asked if job.at_once and not job.together], found, ranks, agreement)
        for window in windows([job for job in asked if not job.at_once or job.together], len(ranks)):
            ask_window(window, taken, found, ranks, agreement)
        return taken

    found = take_censuses(list(asking), take)
    return [replace(job, group=replace(job.group, censuses=found)) for job in jobs] if found else jobs
