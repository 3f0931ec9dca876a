"""The driver of a merge of shards: survey together, then each rank applies to what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..apply import Apply
from ..census import Round, take_censuses
from ..driver import merge_sources, solve, solve_without_data
from ..source import Chunk
from .dealing import ask_dealt, merge_dealt
from .jobs import ShardJob, named, windows
from .local import apply_to_part, localized
from .lockstep import Add, run_together
from .ranks import Agreement, Ranks
from .source import Held, ShardSource, put_together


def merge_shards(jobs: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> None:
    """Merge many tensors; the bits are those of one process that holds them whole. A collective call.

    Every rank has the same jobs in the same order. Messages are small sums, a few per window of tensors, and the
    elements of cut chunks (see ``source.put_together``); methods that need no survey send nothing. Tensors that a
    method takes whole are dealt out (see ``dealing``).
    """
    merge_sources([job.local for job in jobs if job.alone])
    jobs = _after_censuses([job for job in jobs if not job.alone], ranks, agreement)
    at_once = [job for job in jobs if job.at_once]
    merge_sources([job.local for job in at_once if job.layout.whole])
    merge_dealt([job for job in at_once if not job.layout.whole], ranks, agreement)
    _merge_by_parts([job for job in jobs if not job.at_once], ranks, agreement)


def _merge_by_parts(jobs: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> None:
    """Merge tensors of which each rank merges the part that it holds."""
    steps = [solve_without_data(job.method, job.group) for job in jobs]
    placeless = []
    for job, step in zip(jobs, steps, strict=True):
        if step is None:
            continue
        if localized(step, job.layout.runs) is step:  # many small ones go side by side
            placeless.append(job)
        else:
            apply_to_part(step, job.layout.runs, job.out, job.inputs)
    merge_sources([job.local for job in placeless])
    for window in windows([job for job, step in zip(jobs, steps, strict=True) if step is None], len(ranks)):
        sources = _sources(window, ranks, agreement)
        tasks = [partial(_solve, job, chunks) for job, chunks in zip(window, sources, strict=True)]
        for job, step in zip(window, run_together(ranks, agreement, tasks, window[0].out.device), strict=True):
            apply_to_part(step, job.layout.runs, job.out, job.inputs)


def _solve(job: ShardJob, chunks: Sequence[Chunk], add: Add) -> Apply:
    return solve(job.method, job.group, ShardSource(job.group.numel, chunks, add))


def _after_censuses(jobs: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> Sequence[ShardJob]:
    """Return the jobs, which know what the censuses found that their methods take of all of them."""
    asking = {job.group.name: job for job in jobs if job.method.censuses(job.group)}

    def take(names: Sequence[str], found: dict[str, Any]) -> Round:
        taken = ask_dealt([asking[name] for name in names if asking[name].at_once], found, ranks, agreement)
        for window in windows([asking[name] for name in names if not asking[name].at_once], len(ranks)):

            def ask(job: ShardJob, chunks: Sequence[Chunk], add: Add) -> None:
                source = ShardSource(job.group.numel, chunks, add)
                taken.ask(job.method, replace(job.group, censuses=found), source)

            sources = _sources(window, ranks, agreement)
            tasks = [partial(ask, job, chunks) for job, chunks in zip(window, sources, strict=True)]
            run_together(ranks, agreement, tasks, window[0].out.device)
        return taken

    found = take_censuses(list(asking), take)
    return [replace(job, group=replace(job.group, censuses=found)) for job in jobs] if found else jobs


def _sources(window: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> list[list[Chunk]]:
    ranks.doing = f"surveying {named(window)}"
    flat = [Held(job.inputs.map(lambda tensor: tensor.view(-1)), job.group.numel, job.layout.every) for job in window]
    return put_together(ranks, agreement, flat)
