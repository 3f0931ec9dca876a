"""A run: from a plan to a published checkpoint."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..devices.names import DEFAULT, parse_devices
from ..kernels import _native, use_backend
from ..plan.types import OutputTensor, Plan
from .arena import Arena
from .batches import units
from .checksums import BLOCK
from .context import RunContext, Sink
from .files import InputFiles, OutputFiles
from .inputs import Reader
from .journal import Journal, read_journal
from .manifest import write_manifest
from .publish import StagingFolder
from .rehash import Found, Rehash
from .report import Meter, Report
from .scheduler import Scheduler, Unit
from .sizing import Sizes, divide
from .stopping import accounted, other_partials
from .targets import Host, Target, choose

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
        overwrite: replace an existing checkpoint.
        chunk:     elements per chunk of a large tensor, a multiple of 65536; None chooses.
    """

    ram: int = 4 << 30
    threads: int | None = None
    device: str = DEFAULT
    vram: int | None = None
    backend: str | None = None
    overwrite: bool = False
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
        FastmergeError:  a GPU was asked for and cannot be used.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    options = options or RunOptions()
    meter = Meter()
    staging = StagingFolder(Path(out), plan, options.overwrite)
    with (
        use_backend(options.backend),
        limited_to(options.threads),
        staging.locked(),
        InputFiles(f for m in plan.models for f in m.files) as inputs,
    ):
        staging.check_target()
        target = choose(options.device, options.vram)
        sizes = divide(plan.outputs, target.budget(options.ram), options.threads or default_threads(), options.chunk)
        inputs.open()
        with staging.made(), accounted(staging, plan), OutputFiles(str(staging.out), plan.shards) as outputs:
            outputs.open()
            finished = _confirmed(plan, staging, outputs, sizes, inputs)
            journal = Journal(staging.journal, plan, outputs, finished)
            todo = [output for output in plan.outputs if output.name not in finished]
            done = sum(output.nbytes for output in plan.outputs if output.name in finished)
            total = sum(output.nbytes for output in plan.outputs)

            def tick() -> None:
                journal.tick()
                if progress is not None:
                    progress(done + meter.bytes_written, total)

            def make_units(context: RunContext) -> Iterator[Unit]:
                return units(context, todo)

            try:
                work(make_units, target, sizes, inputs, FileSink(outputs, journal), meter, tick)
                inputs.check()
                journal.flush()
            except BaseException:
                # What was finished before the failure stays finished.
                with contextlib.suppress(Exception):
                    journal.flush()
                raise
            finally:
                journal.close()
            outputs.sync(range(len(plan.shards)))
            staging.write_manifest(write_manifest(plan, journal.checksums, staging.write_small_files()))
            staging.publish()
        others = other_partials(staging)
    if progress is not None:
        progress(total, total)
    report = meter.report(
        len(plan.outputs), len(finished), sizes.workers, target.names, target.why, target.peak_bytes()
    )
    return replace(report, notes=(*report.notes, *others))


def default_threads() -> int:
    """Return the number of workers: one per core, and two that wait for the disk while the others compute."""
    return len(os.sched_getaffinity(0)) + 2


def work(
    make_units: Callable[[RunContext], Iterator[Unit]],
    target: Target,
    sizes: Sizes,
    inputs: InputFiles,
    sink: Sink,
    meter: Meter,
    tick: Callable[[], None],
) -> None:
    """Run units on ``sizes.workers`` threads in one arena."""
    arena = Arena(sizes.arena)
    context = RunContext(arena, sizes, Reader(arena, inputs, meter), sink, meter)
    with _one_torch_thread(), _only_new_garbage(), torch.no_grad(), target.slots(arena, sizes, meter) as slots:
        Scheduler(make_units(context), slots).run(tick)


class FileSink:
    """Results go to the output files, finished tensors to the journal."""

    def __init__(self, outputs: OutputFiles, journal: Journal):
        self._outputs, self._journal = outputs, journal

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        self._outputs.write(output.shard, offset, data, address)

    def finish(self, output: OutputTensor, checksum: str) -> None:
        self._journal.finished(output, checksum)


def _confirmed(
    plan: Plan, staging: StagingFolder, outputs: OutputFiles, sizes: Sizes, inputs: InputFiles
) -> dict[str, str]:
    """Return the finished tensors of an earlier run whose bytes still have the checksum of its journal."""
    promised = read_journal(staging.journal, plan)
    if not promised:
        return {}
    found = Found()

    def make_units(context: RunContext) -> Iterator[Unit]:
        return (Rehash(context, output, outputs.read) for output in plan.outputs if output.name in promised)

    work(make_units, Host(), sizes, inputs, found, Meter(), lambda: None)
    return {name: checksum for name, checksum in promised.items() if found.checksums.get(name) == checksum}


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Let each worker compute alone: the units are what runs in parallel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _only_new_garbage() -> Iterator[None]:
    """Collect only garbage of what is made from here on.

    A walk through all else, modules and the plan, takes 0.13 s at 4000 tensors, a quarter of the merge of tiny ones.
    """
    if gc.get_freeze_count():  # by the application, or by another run
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def limited_to(threads: int | None) -> Iterator[None]:
    """Let operations of the processor take no more threads each, in the whole process; None limits nothing."""
    if threads is None or _native.why_no_cpu_extension() is not None:
        yield
        return
    pool = _native.cpu_extension()
    before = pool.get_threads()
    pool.set_threads(min(threads, before))
    try:
        yield
    finally:
        pool.set_threads(before)
