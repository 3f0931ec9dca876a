"""Reading ahead: the system is told what a run reads next, where the page cache does not have it yet.

Workers ask for a chunk at a time, too few bytes to keep a disk busy, and what lies between the tensors of several files
looks random to it. Advice costs nothing where a file is in the page cache: such files get none.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from ..plan.types import OutputTensor
from .files import InputFiles

# Bytes that are asked for beyond those that were read: some tenths of a second of a fast disk.
AHEAD = 512 << 20
# Bytes of one piece of advice; the files of an output are advised in turns.
STEP = 2 << 20

Range = tuple[str, int, int]
"""Path, first byte, bytes."""


@contextlib.contextmanager
def prefetched(inputs: InputFiles, outputs: Sequence[OutputTensor], bytes_read: Callable[[], int]) -> Iterator[None]:
    """Advise the system, on a thread of its own, of what ``outputs`` read in their order.

    ``bytes_read`` says how far the reading is. The inputs must be open, and stay so.
    """
    cold = {path for path in inputs.paths if not inputs.cached(path)}
    if not cold:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_advise, args=(inputs, outputs, cold, bytes_read, over), name="fastmerge-ahead")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _advise(
    inputs: InputFiles,
    outputs: Sequence[OutputTensor],
    cold: set[str],
    bytes_read: Callable[[], int],
    over: threading.Event,
) -> None:
    done = 0
    for path, offset, nbytes in ranges_of(outputs):
        # What is in the cache counts: it is read in the same order.
        while done - bytes_read() > AHEAD and not over.wait(0.01):
            pass
        if over.is_set():
            return
        if path in cold:
            inputs.advise(path, offset, nbytes)
        done += nbytes


def ranges_of(outputs: Sequence[OutputTensor]) -> Iterator[Range]:
    """Yield what is read for outputs, piece by piece: of one output those of its inputs in turns."""
    for output in outputs:
        parts = [part for tensor in output.inputs.every for part in tensor.stored]
        for start in range(0, max((part.nbytes for part in parts), default=0), STEP):
            for part in parts:
                if start < part.nbytes:
                    yield part.path, part.offset + start, min(STEP, part.nbytes - start)
