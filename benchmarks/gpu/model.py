"""Times a merge of all tensors of a 70B model that lies on the device: a base and three experts in bfloat16.

The model is larger than the device, so that its tensors are views that walk through one buffer per input: as many
bytes move, and little of them is still in a cache when a buffer is read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import DeviceType

from fastmerge.steps.driver import Job, merge_sources

from .._bench import Bench, Contender
from ..inventory import make_inputs
from ..kernels.cases import CASES, EXPERTS, Case
from .cases import SMALL, TINY, Llama

METHODS = ("ties", "linear", "dare_ties")
# Elements; separate tensors start as evenly.
ALIGNMENT = 256
BUDGET = 3.0


def run(bench: Bench) -> None:
    """Time every method by three clocks: the wall, the device's, and the sum of what its kernels take."""
    shapes = list((TINY if bench.check else Llama()).shapes())
    buffers = make_inputs(True, max(map(math.prod, shapes)), EXPERTS, torch.bfloat16, bench.device, 0)
    buffers.append(torch.empty_like(buffers[0]))
    for method in METHODS:
        case = next(case for case in CASES if case.method == method)
        with bench.attempt(method):
            verify(bench, case)
            _merge(bench, case, shapes, buffers)


def verify(bench: Bench, case: Case) -> None:
    """Raise AssertionError unless a small model, merged on the device, has the bits that the processor gives it."""
    shapes = list((TINY if bench.check else SMALL).shapes())
    elements = sum(-(-math.prod(shape) // ALIGNMENT) * ALIGNMENT for shape in shapes)
    inputs = make_inputs(True, elements, EXPERTS, torch.bfloat16, torch.device("cpu"), 1)
    outs = []
    for device in (torch.device("cpu"), bench.device):
        outs.append(torch.zeros_like(inputs[0], device=device))
        merge_sources(list(jobs(case, shapes, [*(tensor.to(device) for tensor in inputs), outs[-1]])))
    assert torch.equal(outs[1].cpu(), outs[0]), f"{case.method}: a model merged on the device differs"


def jobs(case: Case, shapes: Sequence[Sequence[int]], buffers: Sequence[Tensor]) -> Iterator[Job]:
    """Yield the merge of every tensor; the last of ``buffers`` is written."""
    start, size = 0, len(buffers[0])
    for i, shape in enumerate(shapes):
        numel = math.prod(shape)
        if start + numel > size:
            start = 0
        *inputs, out = (buffer[start : start + numel].view(*shape) for buffer in buffers)
        yield case.job(out, inputs, f"tensor.{i}")
        start += -(-numel // ALIGNMENT) * ALIGNMENT


def _merge(bench: Bench, case: Case, shapes: Sequence[Sequence[int]], buffers: Sequence[Tensor]) -> None:
    work = list(jobs(case, shapes, buffers))
    elements = sum(map(math.prod, shapes))

    def measure(name: str, contender: Contender, **how) -> None:
        size = elements, buffers[0].element_size()
        bench.measure(
            name, [contender], shape=elements, dtype=buffers[0].dtype, models=case.inputs,
            once=case.bytes_once(*size), moved=case.bytes_moved(*size), budget=BUDGET, **how,
        )  # fmt: skip

    own = Contender("fastmerge", lambda: merge_sources(work), "auto")
    measure(f"{case.method}, 70B, wall", own, clock=bench.on_wall)
    measure(f"{case.method}, 70B", own)
    if not bench.check:
        seconds = kernel_seconds(lambda: merge_sources(work))
        measure(f"{case.method}, 70B, kernels", Contender("fastmerge", backend="auto", measure=lambda: seconds))


def kernel_seconds(run: Callable[[], object]) -> float:
    """Return what the kernels of ``run`` take, without the time between them, and print the longest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in profile.key_averages() if event.device_type == DeviceType.CUDA]
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:10]:
        print(f"    {1e-3 * event.self_device_time_total:9.2f} ms {event.count:6} x {event.key[:80]}", flush=True)
    return 1e-6 * sum(event.self_device_time_total for event in kernels)
