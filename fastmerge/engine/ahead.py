"""Reading ahead by direct I/O: files that are not in the page cache, and whose bytes a run needs once.

The compiled backend does it (csrc/cpu/ahead.cpp): threads of its own read large aligned blocks in the order of the run
into a ring of buffers, several at a time, and workers copy out of them. That costs a fifth of the CPU time of reading
through the page cache, and keeps the disk busy whatever the workers do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence

from ..kernels import cpu_extension, why_no_cpu_extension
from ..plan.types import OutputTensor
from .files import InputFiles
from .large import reads_once
from .sizing import Sizes

# Bytes of one request, and how many are under way at a time.
BLOCK = 4 << 20
DEPTH = 8
# Fewer buffers than that are not worth it.
LEAST_BUFFERS = 4
# Bytes that are read of one input before the next one's turn.
STEP = 2 << 20


def direct_outputs(outputs: Sequence[OutputTensor], regions: int) -> list[OutputTensor]:
    """Return the outputs whose inputs are stored as they are, and read once with so many bytes of regions."""
    return [
        output
        for output in outputs
        if all(tensor.as_stored for tensor in output.inputs.every) and reads_once(output, regions)
    ]


@contextlib.contextmanager
def read_ahead(
    inputs: InputFiles, outputs: Sequence[OutputTensor], paths: Collection[str], sizes: Sizes
) -> Iterator[set[str]]:
    """Read what ``outputs`` need of some files before it is asked for, in up to ``sizes.ahead`` bytes.

    Yield the files for which that is done: not those whose file system refuses direct I/O, or is on another machine.
    """
    buffers = sizes.ahead // BLOCK
    if buffers < LEAST_BUFFERS or not outputs or why_no_cpu_extension() is not None:
        yield set()
        return
    with contextlib.ExitStack() as stack:
        numbers: dict[str, int] = {}
        files: list[tuple[int, int, int]] = []
        for path in paths:
            if not inputs.local(path) or (opened := _opened(path)) is None:
                continue
            stack.callback(os.close, opened)
            numbers[path] = len(files)
            files.append((opened, inputs.descriptor(path), inputs.nbytes(path)))
        if not files:
            yield set()
            return
        groups = [
            [(numbers[t.path], t.offset, t.nbytes) for t in output.inputs.every if t.path in numbers]
            for output in outputs
        ]
        reader = cpu_extension().ReadAhead(files, groups, max(STEP, sizes.load), BLOCK, buffers, min(DEPTH, buffers))
        stack.callback(reader.stop)

        def read(path: str, offset: int, into: memoryview) -> bool:
            number = numbers.get(path)
            return number is not None and reader.read(number, offset, into)

        with inputs.ahead(read):
            yield set(numbers)


def _opened(path: str) -> int | None:
    """Return a descriptor for direct reads, or None where the file system has none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return None
