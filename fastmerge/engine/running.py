"""A run: from a plan to a published checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..devices.names import DEFAULT, parse_devices
from ..kernels import OPERATIONS, limited_threads, use_backend
from ..plan.types import OutputTensor, Plan
from ..sizes import DEFAULT_RAM, parse_size
from .batches import units
from .censuses import knowing, take_all
from .checksums import BLOCK, Sums
from .context import RunContext
from .files import InputFiles, OutputFiles
from .gathering import PlannedFiles
from .journal import Journal, read_journal
from .manifest import write_manifest
from .prefetching import prefetched
from .publish import StagingFolder
from .rehash import Found, Rehash
from .report import Meter, Report
from .scheduler import Unit
from .sizing import Sizes, divide
from .stopping import accounted, other_partials
from .targets import Host, Target, choose
from .ties import check_ties
from .working import default_threads, work

Progress = Callable[[int, int], None]
"""Called several times a second on the calling thread with the output bytes that are written, and all of them."""


@dataclass(frozen=True)
class RunOptions:
    """How a plan is run. Nothing here changes a bit of the output, but for ``device`` where matrices are decomposed.

    Attributes:
        ram:       memory budget in bytes, for everything beyond the interpreter with torch imported.
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
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; expected at least 1")
        parse_devices(self.device)


def run(plan: Plan, out: str | Path, options: RunOptions | None = None, progress: Progress | None = None) -> Report:
    """Carry out ``plan`` and publish the checkpoint as the folder ``out``.

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
    meter = Meter()
    staging = StagingFolder(Path(out), plan, options.overwrite)
    with (
        use_backend(options.backend),
        limited_threads(options.threads),
        staging.locked(),
        PlannedFiles(plan) as inputs,
    ):
        target, sizes = feasible(plan, options)
        staging.check_target()
        inputs.open()
        with staging.made(), accounted(staging, plan), OutputFiles(str(staging.out), plan.shards) as outputs:
            outputs.open()
            parts = _Run(plan, staging, inputs, outputs, sizes, not options.allow_nonfinite)
            journal = parts.resume()
            resumed = len(journal.checksums)
            parts.merge(journal, target, meter, progress)
            parts.publish(journal)
        others = other_partials(staging)
    if progress is not None:
        total = sum(output.nbytes for output in plan.outputs)
        progress(total, total)
    report = meter.report(len(plan.outputs), resumed, sizes.workers, target.names, target.why, target.peak_bytes())
    return replace(report, notes=(*report.notes, *others))


def feasible(plan: Plan, options: RunOptions) -> tuple[Target, Sizes]:
    """Return where ``plan`` is computed, and how the memory is divided.

    Raises:
        BudgetError, FastmergeError, BackendError: the memory is too small, or a device or backend cannot be used.
    """
    target = choose(options.device, options.vram)
    if options.backend not in (None, "auto") and any(output.method != "copy" for output in plan.outputs):
        OPERATIONS["weighted_sum"].choose(target.names[0], options.backend)
    budget = target.budget(options.ram)
    return target, divide(plan.outputs, budget, options.threads or default_threads(), options.chunk)


@dataclass(frozen=True)
class _Run:
    """A run in three parts, each of which goes on where the one before stopped; files are open."""

    plan: Plan
    staging: StagingFolder
    inputs: InputFiles
    outputs: OutputFiles
    sizes: Sizes
    finite: bool

    def resume(self) -> Journal:
        """Start the journal with the tensors of an earlier run whose bytes still have the checksum of its journal."""
        promised = read_journal(self.staging.journal, self.plan)
        found = Found()

        def make_units(context: RunContext) -> Iterator[Unit]:
            outputs = (output for output in self.plan.outputs if output.name in promised)
            return (Rehash(context, output, self.outputs.read) for output in outputs)

        if promised:
            work(make_units, Host(), self.sizes, self.inputs, found, Meter(), lambda: None, strips=True)
        finished = {name: sums for name, sums in promised.items() if found.checksums.get(name) == sums.output}
        return Journal(self.staging.journal, self.plan, self.outputs, finished)

    def merge(self, journal: Journal, target: Target, meter: Meter, progress: Progress | None) -> None:
        """Merge the tensors that the journal does not have; what is finished when this fails is in the journal."""
        todo = [output for output in self.plan.outputs if output.name not in journal.checksums]
        total = sum(output.nbytes for output in self.plan.outputs)
        done = total - sum(output.nbytes for output in todo)

        def tick() -> None:
            journal.tick()
            if progress is not None:
                progress(done + meter.bytes_written, total)

        try:
            strips = target.why_torch(self.plan.outputs) is None
            with prefetched(self.inputs, todo, lambda: meter.bytes_read):
                if todo:
                    found = take_all(self.plan.outputs, target, self.sizes, self.inputs, meter, tick, strips)
                    todo = [knowing(output, found) for output in todo]

                def make_units(context: RunContext) -> Iterator[Unit]:
                    return units(context, todo)

                sink = FileSink(self.outputs, journal)
                work(make_units, target, self.sizes, self.inputs, sink, meter, tick, self.finite, strips)
            self.inputs.check()
            journal.flush()
        except BaseException:
            with contextlib.suppress(Exception):
                journal.flush()
            raise
        finally:
            journal.close()

    def publish(self, journal: Journal) -> None:
        """Look at the whole, bring everything to the disk and give the checkpoint its name."""
        check_ties(self.plan, journal.checksums)
        self.outputs.sync(range(len(self.plan.shards)))
        files = self.staging.write_small_files()
        self.staging.write_manifest(write_manifest(self.plan, journal.checksums, files))
        self.staging.publish()


class FileSink:
    """Results go to the output files, finished tensors to the journal."""

    def __init__(self, outputs: OutputFiles, journal: Journal):
        self._outputs, self._journal = outputs, journal

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        self._outputs.write(output.shard, offset, data, address)

    def finish(self, output: OutputTensor, checksum: str, inputs: Sequence[str] = ()) -> None:
        self._journal.finished(output, Sums(checksum, tuple(inputs)))
