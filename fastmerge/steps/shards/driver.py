"""The driver of a merge of shards: survey together, then each rank applies to what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ...kernels import ALL_EQUAL, Keep
from ...kernels.keep import RULE_ALL, RULE_BAND
from ..apply import Apply, Copy, ElementwiseMerge, SpanSum, SparseMerge, WeightedSum
from ..census import Round, take_censuses
from ..driver import Job, merge_sources, solve, solve_without_data
from ..inputs import Inputs
from ..method import Group, Method
from ..source import Chunk, Resident
from .lockstep import Add, run_together
from .ranks import Agreement, Ranks
from .runs import Runs
from .source import Held, ShardSource, put_together

# Bytes of all local parts of tensors that are surveyed together, and how many these are at most.
WINDOW_BYTES, WINDOW_TENSORS = 64 << 20, 64


@dataclass(frozen=True, eq=False)
class ShardJob:
    """One output tensor of many, of which this rank merges its part.

    Attributes:
        group:  what the method is told of the whole tensor.
        inputs: the local parts, contiguous, of one shape.
        out:    the local part of the output; it may be an input, not one of another job.
        runs:   the elements that this rank holds.
        every:  what each rank surveys, see ``runs.runs_of_ranks``.
        whole:  True when every rank holds the whole tensor.
    """

    method: Method
    group: Group
    inputs: Inputs[Tensor]
    out: Tensor
    runs: Runs
    every: Sequence[Runs]
    whole: bool

    @property
    def alone(self) -> bool:
        """True when every rank merges its tensor without asking another one."""
        return self.whole and not self.method.censuses(self.group)

    @property
    def refusal(self) -> str | None:
        """Why the tensor cannot be merged in shards."""
        if self.alone or self.method.scratch_bytes(self.group) is None:
            return None
        return f"{self.method.name} needs the whole tensor, and every rank holds a part of it"

    @property
    def local(self) -> Job:
        """The job of the local part, as if it were a tensor of its own."""
        return Job(self.method, self.group, Resident.of(self.inputs), self.out)


def merge_shards(jobs: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> None:
    """Merge many tensors; the bits are those of one process that holds them whole. A collective call.

    Every rank has the same jobs in the same order. Messages are small sums, a few per window of tensors, and the
    elements of cut chunks (see ``source.put_together``); methods that need no survey send nothing.
    """
    merge_sources([job.local for job in jobs if job.alone])
    jobs = _after_censuses([job for job in jobs if not job.alone], ranks, agreement)
    steps = [solve_without_data(job.method, job.group) for job in jobs]
    placeless = []
    for job, step in zip(jobs, steps, strict=True):
        if step is None:
            continue
        # Many small ones go side by side; but where a census was taken, that of this part alone is another one.
        if _localized(step, job.runs) is step and not job.method.censuses(job.group):
            placeless.append(job)
        else:
            _apply(job, step)
    merge_sources([job.local for job in placeless])
    for window in _windows([job for job, step in zip(jobs, steps, strict=True) if step is None], len(ranks)):
        sources = _sources(window, ranks, agreement)
        tasks = [partial(_solve, job, chunks) for job, chunks in zip(window, sources, strict=True)]
        for job, step in zip(window, run_together(ranks, agreement, tasks, window[0].out.device), strict=True):
            _apply(job, step)


def _solve(job: ShardJob, chunks: Sequence[Chunk], add: Add) -> Apply:
    return solve(job.method, job.group, ShardSource(job.group.numel, chunks, add))


def _after_censuses(jobs: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> Sequence[ShardJob]:
    """Return the jobs, which know what the censuses found that their methods take of all of them."""
    asking = {job.group.name: job for job in jobs if job.method.censuses(job.group)}

    def take(names: Sequence[str], found: dict[str, Any]) -> Round:
        taken = Round()
        for window in _windows([asking[name] for name in names], len(ranks)):

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
    ranks.doing = _doing(window)
    agreement.check()
    flat = [Held(job.inputs.map(lambda tensor: tensor.view(-1)), job.group.numel, job.every) for job in window]
    return put_together(ranks, flat)


def _doing(window: Sequence[ShardJob]) -> str:
    first, last = window[0].group.name, window[-1].group.name
    return f"surveying {first}" + (f" .. {last} ({len(window)} tensors)" if len(window) > 1 else "")


def _windows(jobs: Sequence[ShardJob], ranks: int) -> Iterator[list[ShardJob]]:
    """Deal jobs into windows, of sizes that all ranks see alike."""
    window: list[ShardJob] = []
    filled = 0
    for job in jobs:
        nbytes = sum(tensor.element_size() for tensor in job.inputs.every) * job.group.numel // ranks
        device = window[0].out.device if window else job.out.device
        if window and (
            filled + nbytes > WINDOW_BYTES or len(window) == WINDOW_TENSORS or job.out.device != device
        ):  # fmt: skip
            yield window
            window, filled = [], 0
        window.append(job)
        filled += nbytes
    if window:
        yield window


def _apply(job: ShardJob, step: Apply) -> None:
    """Apply a step to the local part: at once where it does not ask for the place of an element, else run by run."""
    local = _localized(step, job.runs)
    if local is not None:
        local(job.out, Chunk.of(job.inputs))
        return
    out, inputs = job.out.view(-1), job.inputs.map(lambda tensor: tensor.view(-1))
    for start, stop, place in job.runs:
        part = slice(place, place + stop - start)
        step(out[part], Chunk.of(inputs.map(lambda tensor, part=part: tensor[part]), start))  # type: ignore[misc]


def _localized(step: Apply, runs: Runs) -> Apply | None:
    """Return the step that does to a local part what ``step`` does to a whole tensor; None where there is none.

    It is ``step`` itself where the place of an element is of no account.
    """
    if isinstance(step, Copy | WeightedSum | SpanSum):
        return step
    if isinstance(step, SparseMerge):
        keeps = [rule for keep in step.keeps if (rule := _local_rule(keep, runs)) is not None]
        if len(keeps) < len(step.keeps):
            return None
        return step if keeps == list(step.keeps) else replace(step, keeps=keeps)
    if isinstance(step, ElementwiseMerge):
        inner = None if step.step is None else _localized(step.step, runs)
        keep = None if step.selection is None else _local_rule(step.selection.keep, runs)
        if (inner is None) != (step.step is None) or (keep is None) != (step.selection is None):
            return None
        if inner is step.step and (step.selection is None or keep == step.selection.keep):
            return step
        selection = None if step.selection is None or keep is None else replace(step.selection, keep=keep)
        return replace(step, step=inner, selection=selection)  # type: ignore[arg-type]
    return None


def _local_rule(keep: Keep, runs: Runs) -> Keep | None:
    """Return a keep rule in terms of indices of the local part, or None: random numbers follow global ones."""
    if keep.rule == RULE_ALL:
        return keep
    if keep.rule != RULE_BAND:
        return None
    return keep._replace(b=_local_break(keep.b, runs), d=_local_break(keep.d, runs))


def _local_break(index: int, runs: Runs) -> int:
    return index if index in (0, ALL_EQUAL) else runs.below(index)
