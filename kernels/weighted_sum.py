r"""Weighted sum of N tensors: ``out = sum_k weights[k] * tensors[k]``.

Accumulated in float32, in the order of ``tensors``: the first product, then one multiplication and
one addition per tensor, each rounded separately; rounded once (nearest, ties to even) to
``out.dtype``. Every backend returns the same bits, for any chunking. NaN and infinity propagate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import _cuda, _native, _triton
from ._checks import check_group, checked_jobs, checked_scalars
from ._found import FoundFactors
from ._jobs import SumJob, numbers
from ._registry import Order, operation

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["SumJob", "weighted_sum", "weighted_sum_many"]

# Inputs of one launch on a GPU, where their addresses are parameters: kMaxTensors of csrc/cuda/operations.h.
AT_ONCE = 64


def weighted_sum(
    out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float] | FoundFactors, *, backend: str | None = None
) -> None:
    """Write the weighted sum of ``tensors`` into ``out``.

    Args:
        out:     [...] float32, bfloat16 or float16; overwritten. May be one of ``tensors`` itself.
        tensors: N tensors shaped like ``out``, contiguous, on its device, dtypes mixed freely.
        weights: N scalars, dimensionless, rounded to float32; not normalized here. What only the device knows of them
                 (``answers``) is read by CUDA and Triton, which write nothing where it was not found.
        backend: pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: shapes, devices or counts disagree; the message names the argument and its value.
        BackendError: a pinned backend cannot run.
    """
    job, _ = _checked(SumJob(out, tensors, weights))
    _weighted_sum(job, backend=backend)


def weighted_sum_many(jobs: Sequence[SumJob], *, backend: str | None = None) -> None:
    """Write the weighted sums of ``jobs``, in few launches where the backend can; the bits are those of single calls.

    Args:
        jobs:    on one device; no job may write what another one reads or writes.
        backend: pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: as ``weighted_sum``, naming the job.
        BackendError: a pinned backend cannot run.
    """
    _weighted_sum.many(checked_jobs(jobs, _checked), backend)


def _checked(job: SumJob) -> tuple[SumJob, torch.device]:
    out, tensors, weights = job
    device = check_group(tensors, None, out)
    rounded = checked_scalars("weights", numbers(weights), len(tensors))
    return (job if isinstance(weights, FoundFactors) else SumJob(out, tensors, rounded)), device


@operation(
    "weighted_sum",
    gpu=Order(("triton", "cuda"), "1.1 to 1.2 times as fast as CUDA on an H200"),
    gpu_many=Order(("cuda", "triton"), "2.3 times as fast as Triton on an H200"),
)
def _weighted_sum(job: SumJob) -> None:
    assert not isinstance(job.weights, FoundFactors), "CUDA and Triton merge what the device alone knows"
    acc = job.tensors[0].float() * job.weights[0]
    for tensor, weight in zip(job.tensors[1:], job.weights[1:], strict=True):
        acc = acc + tensor.float() * weight
    job.out.copy_(acc)


def _cpu_many(jobs: Sequence[SumJob]) -> None:
    _native.cpu_extension().weighted_sum(*_native.sums(jobs))


@_weighted_sum.backend("cpu", probe=_native.why_no_cpu_extension, many=_cpu_many)
def _cpu(job: SumJob) -> None:
    _cpu_many([job])


@_weighted_sum.backend("triton", probe=_triton.why_unavailable)
def _run_triton(job: SumJob) -> None:
    from ._triton.weighted_sum import weighted_sum as run

    _in_rounds(job, run)


def _cuda_many(jobs: Sequence[SumJob]) -> None:
    if few := [job for job in jobs if len(job.tensors) <= AT_ONCE]:
        _launch_cuda(few)
    for job in jobs:
        if len(job.tensors) > AT_ONCE:
            _in_rounds(job, lambda part: _launch_cuda([part]))


def _launch_cuda(jobs: Sequence[SumJob]) -> None:
    _cuda.extension().weighted_sum(*_native.sums(jobs), _cuda.stream(jobs[0].out))


def _in_rounds(job: SumJob, run: Callable[[SumJob], None]) -> None:
    """Sum any number of tensors by launches of ``AT_ONCE``: what is summed so far is the first one of the next.

    It is kept in float32 and multiplied by 1, which changes no bit, so that the result is that of one launch.
    """
    if len(job.tensors) <= AT_ONCE:
        run(job)
        return
    import torch

    assert not isinstance(job.weights, FoundFactors), "answers of so many tensors do not stay on a device"
    tensors, weights = list(job.tensors), list(job.weights)
    so_far = torch.empty_like(job.out, dtype=torch.float32)
    while len(tensors) > AT_ONCE:
        run(SumJob(so_far, tensors[:AT_ONCE], weights[:AT_ONCE]))
        tensors, weights = [so_far, *tensors[AT_ONCE:]], [1.0, *weights[AT_ONCE:]]
    run(SumJob(job.out, tensors, weights))


@_weighted_sum.backend("cuda", probe=_cuda.why_unavailable, many=_cuda_many)
def _run_cuda(job: SumJob) -> None:
    _cuda_many([job])
