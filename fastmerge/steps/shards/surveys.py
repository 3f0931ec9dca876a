"""Surveys of shards: what methods ask of a window of tensors, answered by all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ..apply import Apply
from ..census import Round
from ..driver import solve_by_parts
from ..source import Chunk
from .jobs import ShardJob, named
from .lockstep import Add, run_together
from .ranks import Agreement, Ranks
from .source import ShardSource, put_together

T = TypeVar("T")


def solve_window(window: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> list[Apply]:
    """Return the apply step of each tensor. A collective call."""
    return _survey(window, _solve, ranks, agreement)


def ask_window(
    window: Sequence[ShardJob], taken: Round, found: dict[str, Any], ranks: Ranks, agreement: Agreement
) -> None:
    """Ask each tensor for its part of the next census, where so much was found. A collective call."""

    def ask(job: ShardJob, source: ShardSource) -> None:
        taken.ask(job.method, replace(job.group, censuses=found), source)

    _survey(window, ask, ranks, agreement)


def _solve(job: ShardJob, source: ShardSource) -> Apply:
    return solve_by_parts(job.method, job.group, source)


def _survey(
    window: Sequence[ShardJob], ask: Callable[[ShardJob, ShardSource], T], ranks: Ranks, agreement: Agreement
) -> list[T]:
    """Return what is asked of each tensor."""

    def asked(job: ShardJob, chunks: Sequence[Chunk], add: Add) -> T:
        return ask(job, ShardSource(job, chunks, add))

    ranks.doing = f"surveying {named(window)}"
    sources = put_together(ranks, agreement, window)
    tasks = [partial(asked, job, chunks) for job, chunks in zip(window, sources, strict=True)]
    return run_together(ranks, agreement, tasks, window[0].out.device)
