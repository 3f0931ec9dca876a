"""Reading ahead: the system is told what a run reads next, where the page cache does not have it yet.

Workers ask for a chunk at a time, too few bytes to keep a disk busy, and what lies between the tensors of several files
looks random to it. Advice costs nothing where a file is in the page cache: such files get none.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from ..plan.types import OutputTensor
from .ahead import STEP, direct_outputs, read_ahead
from .censuses import censuses_of
from .files import InputFiles
from .sizing import Sizes

# Bytes that are asked for beyond those that were read: some tenths of a second of a fast disk.
AHEAD = 512 << 20

Range = tuple[str, int, int]
"""Path, first byte, bytes."""

Asks = Callable[[OutputTensor, str], bool]
"""True where the system is advised of what an output reads of a file."""


@contextlib.contextmanager
def prefetched(
    inputs: InputFiles, outputs: Sequence[OutputTensor], sizes: Sizes, bytes_read: Callable[[], int]
) -> Iterator[None]:
    """Read what ``outputs`` need of cold files before it is asked for, in their order; the inputs must be open.

    By direct I/O where that can be (``ahead.read_ahead``). For the rest the system is advised, on a thread of its own;
    ``bytes_read`` says how far the reading is.
    """
    cold = {path for path in inputs.paths if not inputs.cached(path)}
    if not cold:
        yield
        return
    once = [] if any(map(censuses_of, outputs)) else direct_outputs(outputs, sizes.regions)
    with read_ahead(inputs, once, cold, sizes) as direct:
        names = {output.name for output in once}
        if len(names) == len(outputs) and direct == cold:
            yield
        else:
            with _advised(
                inputs, outputs, lambda o, path: path in (cold - direct if o.name in names else cold), bytes_read
            ):
                yield


@contextlib.contextmanager
def _advised(
    inputs: InputFiles, outputs: Sequence[OutputTensor], asks: Asks, bytes_read: Callable[[], int]
) -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=_advise, args=(inputs, outputs, asks, bytes_read, over), name="fastmerge-ahead")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _advise(
    inputs: InputFiles,
    outputs: Sequence[OutputTensor],
    asks: Asks,
    bytes_read: Callable[[], int],
    over: threading.Event,
) -> None:
    done = 0
    for output in outputs:
        for path, offset, nbytes in ranges_of(output):
            # What is in the cache counts: it is read in the same order.
            while done - bytes_read() > AHEAD and not over.wait(0.01):
                pass
            if over.is_set():
                return
            if asks(output, path):
                inputs.advise(path, offset, nbytes)
            done += nbytes


def ranges_of(output: OutputTensor) -> Iterator[Range]:
    """Yield what is read for an output, piece by piece: of its inputs in turns."""
    parts = [part for tensor in output.inputs.every for part in tensor.stored]
    for start in range(0, max((part.nbytes for part in parts), default=0), STEP):
        for part in parts:
            if start < part.nbytes:
                yield part.path, part.offset + start, min(STEP, part.nbytes - start)
