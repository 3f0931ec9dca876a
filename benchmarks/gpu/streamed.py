"""Times the engine's pipeline on a 70B model's tensors that come from host memory and go back there: no disk.

Host memory -> pinned memory -> device -> merge -> pinned memory -> host memory, with the threads, streams, budgets and
checksums of a merge of files. ``in place`` locks the memory that holds the inputs, piece by piece, instead of copying
it; ``pinned`` leaves out the host's copies into and out of pinned memory. Models are larger than the host's memory, so
that their bytes repeat after a gigabyte; every byte is moved as if it were another one. The bound copies as many bytes
both ways between pinned memory and the device, and does nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastmerge.dtypes import bfloat16
from fastmerge.engine.batches import units
from fastmerge.engine.context import RunContext
from fastmerge.engine.report import Meter
from fastmerge.engine.scheduler import Unit
from fastmerge.engine.sizing import divide
from fastmerge.engine.targets import choose
from fastmerge.engine.working import default_threads, work
from fastmerge.plan.types import InputTensor, OutputTensor
from fastmerge.steps.driver import merge_source
from fastmerge.steps.inputs import split

from .._bench import Bench, Bound, Contender, Run
from ..inventory import make_inputs
from ..kernels.cases import CASES, EXPERTS, Case
from .cases import SMALL, TINY, Llama

METHODS = ("ties", "linear", "dare_ties")
# How bytes come to pinned memory, as rows name it.
COPIED, IN_PLACE, PINNED = "", ", in place", ", pinned"
# Four of 80 layers, the embeddings and the head: 5.5 billion parameters.
PART = Llama(layers=4)
RAM = 4 << 30
BLOCK_ELEMENTS = 2**29
PIECE_BYTES = 64 << 20
BUDGET = 1.5
# One run of all of it and one of the bound, at 40 GB/s.
ALL_SECONDS = 40


class HostModels:
    """In place of files: every model is a block of ordinary memory that repeats, and so is the output."""

    def __init__(self, blocks: Sequence[Tensor], out: Tensor):
        self._blocks = {str(i): block.view(torch.uint8) for i, block in enumerate(blocks)}
        self.out = out
        self._out_bytes = out.view(torch.uint8)
        self._how = COPIED
        self._left = 0

    def start(self, arena_bytes: int, how: str) -> None:
        """Begin a run; ``PINNED`` copies bytes only until the arena holds nothing but weights."""
        self._how, self._left = how, 2 * arena_bytes

    def memory(self, path: str, offset: int, nbytes: int) -> memoryview | None:
        """Return bytes where they lie, as ``engine.files.InputFiles`` does; not those beyond the end of the block."""
        block = self._blocks[path]
        start = offset % len(block)
        if self._how != IN_PLACE or start + nbytes > len(block):
            return None
        return block[start : start + nbytes].numpy().data

    def read(self, path: str, offset: int, into: memoryview) -> None:
        """Fill ``into`` as ``engine.files.Inputs`` does."""
        if self._how != PINNED or self._left > 0:
            self._left -= len(into)
            # Unlike slices of memoryviews, torch lets other threads run while it copies.
            _copy(torch.frombuffer(into, dtype=torch.uint8), self._blocks[path], offset)

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        """Take a result as ``engine.running.FileSink`` does."""
        if self._how != PINNED:
            part = torch.frombuffer(data, dtype=torch.uint8)
            start = offset % (len(self._out_bytes) - len(part) + 1)
            self._out_bytes[start : start + len(part)].copy_(part)

    def finish(self, output: OutputTensor, checksum: str, inputs: Sequence[str] = ()) -> None:
        """Take note of nothing."""


def _copy(into: Tensor, block: Tensor, offset: int) -> None:
    done = 0
    while done < len(into):
        start = (offset + done) % len(block)
        count = min(len(into) - done, len(block) - start)
        into[done : done + count].copy_(block[start : start + count])
        done += count


def outputs(case: Case, model: Llama) -> list[OutputTensor]:
    """Return what a plan holds for the tensors of a model, one after the other in one file per input."""
    found, offset = [], 0
    for i, shape in enumerate(model.shapes()):
        nbytes = 2 * math.prod(shape)
        name = f"tensor.{i}"
        every = [InputTensor(k, name, str(k), offset, nbytes, bfloat16, shape) for k in range(case.inputs)]
        group = case.group(name, shape)
        inputs = split(every, case.has_base)
        found.append(OutputTensor(name, bfloat16, shape, 0, offset, nbytes, case.method, inputs, group))
        offset += nbytes
    return found


def host_models(bench: Bench) -> tuple[list[Tensor], HostModels]:
    """Return the blocks that models repeat, and the models."""
    elements = 2**20 if bench.check else BLOCK_ELEMENTS
    blocks = [block.cpu() for block in make_inputs(True, elements, EXPERTS, torch.bfloat16, bench.device, 0)]
    return blocks, HostModels(blocks, torch.empty_like(blocks[0]))


def run(bench: Bench) -> None:
    """Time every method on a part of the model, then TIES on all of it."""
    blocks, models = host_models(bench)
    cases = {case.method: case for case in CASES}
    for method in METHODS:
        with bench.attempt(method):
            _verify(bench, cases[method], blocks, models)
            for how in (COPIED, IN_PLACE, PINNED):
                stream(bench, cases[method], TINY if bench.check else PART, models, how)
    if not bench.check and bench.has(ALL_SECONDS, "all of the model"):
        with bench.attempt("all of the model"):
            stream(bench, cases["ties"], Llama(), models, COPIED)


def _verify(bench: Bench, case: Case, blocks: Sequence[Tensor], models: HostModels) -> None:
    """Raise AssertionError unless a small model comes out with the bits that the processor gives it in memory."""
    tensors = outputs(case, TINY if bench.check else SMALL)
    models.out.fill_(torch.nan)
    merge(bench, tensors, models, COPIED)()
    for tensor in tensors:
        first, last = tensor.offset // 2, (tensor.offset + tensor.nbytes) // 2
        expected = torch.empty(tensor.shape, dtype=tensor.dtype.torch)
        job = case.job(expected, [block[first:last].view(tensor.shape) for block in blocks], tensor.name)
        merge_source(job.method, job.group, job.source, job.out)
        assert torch.equal(models.out[first:last].view(tensor.shape), expected), f"{case.method}: {tensor.name} differs"


def merge(
    bench: Bench, tensors: Sequence[OutputTensor], models: HostModels, how: str, threads: int | None = None
) -> Run:  # fmt: skip
    """Return the merge of ``tensors`` by so many threads; ``how`` their bytes come."""
    bench.release()
    where = choose(bench.device.type, None)
    sizes = divide(tensors, where.budget(RAM), threads or default_threads())

    def make_units(shop: RunContext) -> Iterator[Unit]:
        return units(shop, tensors)

    def run() -> None:
        models.start(sizes.arena, how)
        work(make_units, where, sizes, models, models, Meter(), lambda: None)

    return run


def stream(
    bench: Bench, case: Case, shapes: Llama, models: HostModels, how: str, threads: int | None = None
) -> None:  # fmt: skip
    tensors = outputs(case, shapes)
    elements = sum(tensor.nbytes for tensor in tensors) // 2
    bench.measure(
        f"{case.method}, streamed{how}" + (f", {threads} threads" if threads else ""),
        [Contender("fastmerge", merge(bench, tensors, models, how, threads), "auto")],
        shape=elements, dtype=torch.bfloat16, models=case.inputs, once=case.bytes_once(elements, 2),
        clock=bench.on_wall, bound=transfers(bench, 2 * elements, case.inputs), budget=BUDGET, warm=True,
    )  # fmt: skip


def transfers(bench: Bench, nbytes: int, inputs: int) -> Bound:
    """Return the bound: ``inputs`` times ``nbytes`` to the device and ``nbytes`` back, at once, in pinned memory."""
    piece = 2**10 if bench.check else PIECE_BYTES
    host = [torch.zeros(piece, dtype=torch.uint8, pin_memory=not bench.check) for _ in range(inputs + 1)]
    there = [torch.zeros(piece, dtype=torch.uint8, device=bench.device) for _ in range(inputs + 1)]
    streams = [None, None] if bench.check else [torch.cuda.Stream(), torch.cuda.Stream()]

    def move() -> None:
        for _ in range(-(-nbytes // piece)):
            with torch.cuda.stream(streams[0]):
                for source, target in zip(host[1:], there[1:], strict=True):
                    target.copy_(source, non_blocking=True)
            with torch.cuda.stream(streams[1]):
                host[0].copy_(there[0], non_blocking=True)

    return Bound("pcie", (inputs + 1) * nbytes, [bench.on_wall(move)])
