"""Surveys of shards: what methods ask of a window of tensors, answered by all ranks together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..apply import Apply
from ..census import Round
from ..driver import solve_by_parts
from ..source import Chunk
from .jobs import ShardJob, named
from .lockstep import Add, run_together
from .ranks import Agreement, Ranks
from .source import Held, ShardSource, put_together


def solve_window(window: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> list[Apply]:
    """Return the apply step of each tensor. A collective call."""
    sources = _sources(window, ranks, agreement)
    tasks = [partial(_solve, job, chunks) for job, chunks in zip(window, sources, strict=True)]
    return run_together(ranks, agreement, tasks, window[0].out.device)


def ask_window(
    window: Sequence[ShardJob], taken: Round, found: dict[str, Any], ranks: Ranks, agreement: Agreement
) -> None:
    """Ask each tensor for its part of the next census, where so much was found. A collective call."""

    def ask(job: ShardJob, chunks: Sequence[Chunk], add: Add) -> None:
        source = ShardSource(job.group.numel, chunks, add)
        taken.ask(job.method, replace(job.group, censuses=found), source)

    sources = _sources(window, ranks, agreement)
    tasks = [partial(ask, job, chunks) for job, chunks in zip(window, sources, strict=True)]
    run_together(ranks, agreement, tasks, window[0].out.device)


def _solve(job: ShardJob, chunks: Sequence[Chunk], add: Add) -> Apply:
    return solve_by_parts(job.method, job.group, ShardSource(job.group.numel, chunks, add))


def _sources(window: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> list[list[Chunk]]:
    ranks.doing = f"surveying {named(window)}"
    flat = [Held(job.inputs.map(lambda tensor: tensor.view(-1)), job.group.numel, job.layout.every) for job in window]
    return put_together(ranks, agreement, flat)
