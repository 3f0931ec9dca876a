"""A run: from a plan to a published checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..arguments import whole
from ..devices.names import DEFAULT, parse_devices
from ..errors import InvalidInput, Problem
from ..kernels import BACKENDS, OPERATIONS, limited_threads, use_backend
from ..plan.types import OutputTensor, Plan
from ..progress import Progress
from ..sizes import DEFAULT_RAM, parse_size
from .batches import units
from .censuses import knowing, take_all
from .checksums import BLOCK, Sums
from .context import RunContext
from .dealing import Seams, common_pages, deal, deal_parts, from_the_middle, taken_over, unfinished
from .files import InputFiles, OutputFiles
from .gathering import PlannedFiles
from .journal import Journal, journal_of, journals_beside, read_journals
from .manifest import write_manifest
from .parts import joined, recorded
from .prefetching import prefetched
from .publish import StagingFolder
from .ranks import ALONE, Ranks
from .rehash import Found, Rehash
from .report import Meter, Report
from .scheduler import Unit
from .sizing import Sizes, divide
from .stopping import accounted, other_partials
from .targets import Host, Target, choose
from .ties import check_ties
from .together import agree_on_plan, combine_meters, combined_sums, open_together, promised_to, united
from .working import default_threads, work


@dataclass(frozen=True)
class RunOptions:
    """How a plan is run. Nothing here changes a bit of the output, but for ``device`` where matrices are decomposed.

    Attributes:
        ram:       memory budget in bytes, for everything beyond the interpreter and its packages.
        threads:   worker threads, and the most that one operation of the processor takes; None takes the cores and two
                   more, which wait for the disk meanwhile.
        device:    "cpu", "cuda" (every GPU), GPUs such as "cuda:0,cuda:1", or "auto": every GPU where there is one and
                   the operations have kernels for it, else the processor.
        vram:      memory budget in bytes on each GPU, beyond what CUDA itself takes; None takes 90 % of what is free.
        backend:   backend of the operations, pinned; None takes the fastest available.
        overwrite: replace an existing output of fastmerge.
        allow_nonfinite: let NaN and infinity pass; without it inputs that hold them, and results that do, are refused.
        chunk:     elements per chunk of a large tensor, a multiple of 65536; None chooses.
    """

    ram: int = parse_size(DEFAULT_RAM)
    threads: int | None = None
    device: str = DEFAULT
    vram: int | None = None
    backend: str | None = None
    overwrite: bool = False
    allow_nonfinite: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and (self.chunk <= 0 or self.chunk % BLOCK):
            raise ValueError(f"chunk is {self.chunk}; expected a positive multiple of {BLOCK}")
        problems = list(whole("threads", self.threads))
        try:
            parse_devices(self.device)
        except ValueError as error:
            problems.append(Problem("device", str(error)))
        if self.backend not in (None, "auto", *BACKENDS):
            known = ", ".join(("auto", *BACKENDS))
            problems.append(Problem("backend", f"is {self.backend!r}, expected one of {known}"))
        if problems:
            raise InvalidInput(problems)


def run(
    plan: Plan,
    out: str | Path,
    options: RunOptions | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Report:
    """Carry out ``plan`` and publish the checkpoint as the folder ``out``; with ``ranks``, those of one merge share it.

    The work happens in a folder beside ``out``. A run that was interrupted, even by SIGKILL, goes on
    where it stopped when it is started again with the same plan, and gives the same bytes.

    Raises:
        OutputError:     ``out`` exists, another run writes it, or the disk is full. The work that is done is kept.
        CheckpointError: an input changed, is truncated, or cannot be read.
        BudgetError:     ``options.ram`` or ``vram`` is too small; the message says how much is needed.
        Refused:         an input or a result holds NaN or infinity, or a method cannot merge what the inputs hold.
        FastmergeError:  a GPU was asked for and cannot be used.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    options = options or RunOptions()
    threads = options.threads or ranks.default_threads()
    options = replace(options, threads=threads, device=ranks.device(options.device))
    meter = Meter()
    staging = StagingFolder(Path(out), plan, options.overwrite)
    agree_on_plan(ranks, plan, staging.target, options.allow_nonfinite)
    with (
        use_backend(options.backend),
        limited_threads(options.threads),
        _if_first(ranks, staging.locked),
        PlannedFiles(plan) as inputs,
    ):
        target, sizes = feasible(plan.outputs, options)
        staging.check_target()
        inputs.open()
        cold = tuple(path for path in inputs.paths if not inputs.cached(path))
        with (
            _if_first(ranks, staging.made),
            _if_first(ranks, lambda: accounted(staging, plan)),
            ranks.answering(),
            OutputFiles(str(staging.out), plan.shards) as outputs,
        ):
            open_together(ranks, staging, outputs)
            parts = _Run(plan, staging, inputs, outputs, sizes, not options.allow_nonfinite, ranks)
            journal, finished = parts.resume()
            parts.merge(journal, finished, target, meter, progress)
            combine_meters(ranks, meter)
            parts.publish(journal)
        others = other_partials(staging)
    if progress is not None:
        total = sum(output.nbytes for output in plan.outputs)
        progress(total, total)
    names = {output.name for output in plan.outputs}
    report = meter.report(
        len(plan.outputs), len(finished.keys() & names), sizes.workers, target.names, target.why, target.peak_bytes()
    )
    return replace(report, cold=cold, notes=(*report.notes, *others, *_of_ranks(ranks)))


def _of_ranks(ranks: Ranks) -> list[str]:
    if ranks.count == 1:
        return []
    return [
        f"{ranks.count} ranks merged: bytes are those of all; CPU time, bound and memory those of rank {ranks.number}"
    ]


def _if_first(
    ranks: Ranks, what: Callable[[], contextlib.AbstractContextManager[None]]
) -> contextlib.AbstractContextManager[None]:
    """Return what the first rank alone does."""
    return what() if ranks.first else contextlib.nullcontext()


def feasible(outputs: Sequence[OutputTensor], options: RunOptions) -> tuple[Target, Sizes]:
    """Return where ``outputs`` are computed, and how the memory is divided.

    Raises:
        BudgetError, FastmergeError, BackendError: the memory is too small, or a device or backend cannot be used.
    """
    target = choose(options.device, options.vram)
    if options.backend not in (None, "auto") and any(output.method != "copy" for output in outputs):
        OPERATIONS["weighted_sum"].choose(target.names[0], options.backend)
    budget = target.budget(options.ram)
    return target, divide(outputs, budget, options.threads or default_threads(), options.chunk)


@dataclass(frozen=True)
class _Run:
    """A run in three parts, each of which goes on where the one before stopped; files are open."""

    plan: Plan
    staging: StagingFolder
    inputs: InputFiles
    outputs: OutputFiles
    sizes: Sizes
    finite: bool
    ranks: Ranks

    def resume(self) -> tuple[Journal, dict[str, Sums]]:
        """Start the journal with what of an earlier run has bytes that still have the checksum of its journal.

        Return it, and what of these all ranks have together: the first one has them in its journal.
        """
        path, number = self.staging.journal, self.ranks.number
        promised = promised_to(self.ranks, lambda: read_journals(path, self.plan))
        mine = self._share(recorded(self.plan.outputs, promised))
        found = Found()

        def make_units(context: RunContext) -> Iterator[Unit]:
            return (Rehash(context, output, self.outputs.read) for output in mine)

        if mine:
            work(make_units, Host(), self.sizes, self.inputs, found, Meter(), self._listen, strips=True)
        sums_found = united(self.ranks, found.checksums)
        kept = {name: sums for name, sums in promised.items() if sums_found.get(name) == sums.output}
        finished = taken_over(self.plan.outputs, kept)
        if not self.ranks.first:
            self.ranks.hear(b"")  # the first one has noted all, and removes no more
            return Journal(journal_of(path, number), self.plan, self.outputs, {}), finished
        journal = Journal(path, self.plan, self.outputs, finished)
        for other in journals_beside(path):
            os.unlink(other)
        self.ranks.hear(b"")
        return journal, finished

    def _listen(self) -> None:
        self.ranks.tick(0)

    def _share(self, outputs: Sequence[OutputTensor]) -> list[OutputTensor]:
        return deal(outputs, self.ranks.count)[self.ranks.number]

    def merge(
        self, journal: Journal, finished: dict[str, Sums], target: Target, meter: Meter, progress: Progress | None
    ) -> None:
        """Merge this rank's share of what is not finished; what is when this fails is in the journal."""
        todo = unfinished(self.plan.outputs, finished)
        total = sum(output.nbytes for output in self.plan.outputs)
        done = total - sum(output.nbytes for output in todo)

        def tick() -> None:
            if self.ranks.first:  # while workers have the processor: each is a wait for the disk
                self.staging.write_small_files()
            journal.tick()
            written = self.ranks.tick(meter.bytes_written)
            if progress is not None:
                progress(done + written, total)

        try:
            strips = target.why_torch(self.plan.outputs) is None
            runs = deal_parts(todo, self.ranks.count)
            mine = from_the_middle(runs[self.ranks.number])
            with (
                prefetched(self.inputs, mine, self.sizes, lambda: meter.bytes_read),
                Seams(str(self.staging.out), self.plan.shards, common_pages(runs)) as seams,
            ):
                if todo:
                    own = {output.name for output in self._share(self.plan.outputs)}
                    found = take_all(
                        self.plan.outputs, target, self.sizes, self.inputs, meter, tick, strips, self.ranks, own
                    )
                    mine = [knowing(output, found) for output in mine]

                def make_units(context: RunContext) -> Iterator[Unit]:
                    return units(context, mine)

                sink = FileSink(self.outputs, journal, seams)
                work(make_units, target, self.sizes, self.inputs, sink, meter, tick, self.finite, strips, self.ranks)
            self.inputs.check()
            journal.flush()
        except BaseException:
            with contextlib.suppress(Exception):
                journal.flush()
            raise
        finally:
            journal.close()

    def publish(self, journal: Journal) -> None:
        """Look at the whole, bring everything to the disk and give the checkpoint its name, on the first rank."""
        checksums = joined(self.plan.outputs, combined_sums(self.ranks, journal.checksums))
        if self.ranks.first:
            check_ties(self.plan, checksums)
            self.outputs.sync_all()
            files = self.staging.write_small_files()
            self.staging.write_manifest(write_manifest(self.plan, checksums, files))
            self.staging.publish()
        self.ranks.hear(b"")


class FileSink:
    """Results go to the output files, finished tensors to the journal."""

    def __init__(self, outputs: OutputFiles, journal: Journal, seams: Seams):
        self._outputs, self._journal, self._seams = outputs, journal, seams

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        start, end = self._seams.write(output.shard, offset, data)
        self._outputs.write(output.shard, offset + start, data[start:end], address + start)

    def finish(self, output: OutputTensor, checksum: str, inputs: Sequence[str] = ()) -> None:
        self._journal.finished(output, Sums(checksum, tuple(inputs)))
