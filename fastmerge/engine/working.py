"""Work: units on worker threads in one arena, and what that changes in the process meanwhile."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator

import numpy as np

from .context import RunContext, Sink
from .files import InputFiles
from .finite import Suspect
from .inputs import Reader
from .mapping import InPlace
from .ranks import ALONE, Ranks
from .report import Meter
from .scheduler import WRITERS, Scheduler, Unit
from .sizing import Sizes
from .targets import Target
from .totals import Totals

# Blocks of that size are kept by the thread that freed them, up to two of them in all.
KEPT_BYTES = 4 << 20


def default_threads() -> int:
    """Return the number of workers: one per core, and two that wait for the disk while the others compute."""
    return len(os.sched_getaffinity(0)) + WRITERS


def work(
    make_units: Callable[[RunContext], Iterator[Unit]],
    target: Target,
    sizes: Sizes,
    inputs: InputFiles,
    sink: Sink,
    meter: Meter,
    tick: Callable[[], None],
    finite: bool = False,
    strips: bool = False,
    ranks: Ranks = ALONE,
) -> None:
    """Run units on ``sizes.workers`` threads in one arena; ``finite`` insists on finite numbers.

    Units get strips, or torch's tensors. Those of tensors of which other ``ranks`` have parts ask them for sums.

    Refused: the inputs hold what the method cannot merge, or, where it is insisted, numbers are not finite.
    """
    _keep_freed_memory()
    with (
        _only_new_garbage(),
        torch_at_rest(strips),
        target.arena(sizes.arena, strips) as arena,
        target.slots(arena, sizes, meter) as slots,
    ):
        reader = Reader(arena, inputs, meter, places=InPlace(inputs, strips and not sizes.apart))
        context = RunContext(arena, sizes, reader, sink, meter, finite, Totals(ranks))
        try:
            Scheduler(make_units(context), slots, sizes.workers, context.totals.stop).run(tick)
        except Suspect as suspect:
            raise suspect.refusal(inputs) from suspect


@contextlib.contextmanager
def torch_at_rest(strips: bool = False) -> Iterator[None]:
    """Let each worker compute alone, without gradients: the units are what runs in parallel."""
    if strips:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Let the C library keep what operations free, a few MiB for each thread, for the next ones.

    By itself it gives blocks of a quarter of a MiB back to the system, which clears their pages every time: a third of
    the processor's time of what numpy computes block by block. glibc learns it from a large block that is freed.
    """
    np.empty(KEPT_BYTES, np.uint8)


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
